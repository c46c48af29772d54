"""Why there is no connection, in words."""

from __future__ import annotations

import errno
import socket

import pytest

from pushservice.client.connection_errors import (
    error_text,
    no_tls_text,
    refusal_text,
    retry_after,
    untrusted_text,
)

DATE = ("Fri, 31 Dec 1999 23:59:59 GMT", None)
HUGE = ("9" * 400, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5.0), (" 5 ", 5.0), ("0", 0.0), (None, None), ("-1", None), ("x", None), DATE, HUGE],
)
def test_retry_after_is_a_number_of_seconds_or_not_understood(value, seconds):
    assert retry_after(value) == seconds


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"too many clients\nsecond line", "too many clients"),
        (b"", ""),
        (None, ""),
        (b"<html><body>busy", ""),
        (b"a\x1b[31mb\xff", "a\ufffd[31mb\ufffd"),
        (b"x" * 5000, "x" * 200),
    ],
)
def test_a_refusals_first_line_is_quoted_where_it_is_for_people(body, words):
    assert refusal_text(body) == words


def test_a_certificates_fault_is_named_with_what_may_be_done():
    assert "name its file with ca=" in untrusted_text("host", 18)
    assert "not for that name" in untrusted_text("host", 62)
    assert untrusted_text("host", 77, "odd").endswith("refused: odd")
    assert "error 77" in untrusted_text("host", 77)
    assert "ws://" in no_tls_text("wss://host:1/")


def test_errors_of_the_system_are_said_without_their_numbers():
    assert error_text(ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed (...)")) == (
        "Connection refused"
    )
    assert (
        error_text(socket.gaierror(-2, "Name or service not known")) == "Name or service not known"
    )
    assert error_text(OSError("Multiple exceptions: a, b")) == "Multiple exceptions: a, b"
    assert error_text(EOFError()) == "EOFError"
