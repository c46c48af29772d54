"""Which outlets are used: what the environment names, what was built, what libraries have."""

from __future__ import annotations

import sys

import pytest
from twisted.internet import reactor
from twisted.internet.testing import StringTransport

from pushservice.server.outlets.choice import MODES, choose
from pushservice.server.outlets.portable import PortableOutlet
from pushservice.server.outlets.private_names import missing_names, openssl_functions


def test_all_private_names_are_there_with_these_libraries():
    assert missing_names(reactor) == []
    assert choose("auto", reactor).name == choose("batched", reactor).name == "batched"
    assert choose("direct", reactor).name == "direct"


def test_without_the_extension_auto_is_direct_and_batched_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pushservice.fanout._fanout", None)
    monkeypatch.delattr("pushservice.fanout._fanout", raising=False)
    assert choose("auto", reactor).name == "direct"
    with pytest.raises(ValueError, match=r"batched outlets need the C extension"):
        choose("batched", reactor)


def test_without_the_libraries_openssl_auto_is_direct(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.bindings._rust", None)
    assert openssl_functions() is None
    assert choose("auto", reactor).name == "direct"


def test_a_missing_private_name_makes_auto_portable_and_direct_an_error(monkeypatch):
    monkeypatch.setattr("pushservice.server.outlets.private_names.lib", object())
    assert missing_names(reactor) == ["OpenSSL._util.lib.SSL_write", "OpenSSL._util.lib.BIO_read"]
    assert choose("auto", reactor).make is PortableOutlet
    assert choose("portable", reactor).make is PortableOutlet
    with pytest.raises(ValueError, match=r"direct outlets need what is not there: OpenSSL\._util"):
        choose("direct", reactor)


def test_a_mode_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"^'fast' is no outlet; there are auto, port"):
        choose("fast", reactor)
    assert MODES == ("auto", "portable", "direct", "batched")


def test_a_transport_of_another_kind_gets_a_portable_outlet():
    made = choose("direct", reactor).make(StringTransport(), lambda code: None)
    assert type(made) is PortableOutlet
    assert made.progress() is None, "it has no socket that could be asked"
