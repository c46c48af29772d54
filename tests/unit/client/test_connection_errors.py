"""Why there is no connection, in words."""

from __future__ import annotations

import errno
import socket

import pytest

from pushservice.client.connection_errors import in_words, no_tls, retry_after, told_by, untrusted

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
    assert told_by(body) == words


def test_a_certificates_fault_is_named_with_what_may_be_done():
    assert "name its file with ca=" in untrusted("host", 18)
    assert "not for that name" in untrusted("host", 62)
    assert untrusted("host", 77, "odd").endswith("refused: odd")
    assert "error 77" in untrusted("host", 77)
    assert "ws://" in no_tls("wss://host:1/")


def test_errors_of_the_system_are_said_without_their_numbers():
    assert in_words(ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed (...)")) == (
        "Connection refused"
    )
    assert in_words(socket.gaierror(-2, "Name or service not known")) == "Name or service not known"
    assert in_words(OSError("Multiple exceptions: a, b")) == "Multiple exceptions: a, b"
    assert in_words(EOFError()) == "EOFError"
