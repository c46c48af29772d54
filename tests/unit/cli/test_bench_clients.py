"""A load: who may be loaded, what each client subscribes, and room for connections."""

from __future__ import annotations

import resource

import pytest

from pushservice.cli.bench_clients import is_loopback, raise_file_limit, symbols_per_client


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("wss://localhost:8008", True),
        ("ws://127.0.0.1", True),
        ("ws://127.8.8.8:1", True),
        ("ws://[::1]:8008", True),
        ("ws://192.0.2.1", False),
        ("ws://0.0.0.0", False),
        ("ws://nobody.invalid", False),
    ],
)
def test_only_this_machine_is_loopback(url, is_here):
    assert is_loopback(url) is is_here


def test_each_client_subscribes_all_or_its_share_going_round():
    symbols = ["A", "B", "C"]
    assert symbols_per_client(symbols, None, 2) == [symbols, symbols]
    assert symbols_per_client(symbols, 5, 1) == [symbols]
    assert symbols_per_client(symbols, 2, 3) == [["A", "B"], ["C", "A"], ["B", "C"]]
    assert symbols_per_client(symbols, 1, 4) == [["A"], ["B"], ["C"], ["A"]]


def test_the_file_limit_is_raised_or_an_error_says_that_it_can_not_be(monkeypatch):
    limits = [[50, 1000]]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(list(limit)))
    raise_file_limit(500)
    assert limits[-1] == [600, 1000]
    raise_file_limit(100)
    assert limits[-1] == [600, 1000]
    with pytest.raises(ValueError, match="may open 1000 files, and 5000 clients need 5100"):
        raise_file_limit(5000)
    limits.append([50, resource.RLIM_INFINITY])
    raise_file_limit(5000)
    assert limits[-1][0] == 5100
