"""Errands at a real Redis: done in one go, or failed with one reason, whatever else runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from free_ports import free_port
from redis_process import Authority, start_redis

from pushservice.redis import one_shot
from pushservice.redis.one_shot import RequestFailed, ask
from pushservice.redis.url import RedisAddress, RedisTLS, redis_address


def at(url: str) -> RedisAddress:
    address = redis_address(url)
    assert address is not None
    return address


def test_the_answers_come_in_the_order_of_the_commands(redis_server):
    commands = [["SET", "test_errands", b"\xff", "EX", 60], ["GET", "test_errands"]]
    for url in (redis_server.url, redis_server.socket_url):
        assert ask(at(url), commands) == [b"OK", b"\xff"]


def test_a_login_is_made(own_redis):
    server = own_redis("--requirepass", "geheim")
    assert ask(at(f"redis://:geheim@127.0.0.1:{server.port}"), [["PING"]]) == [b"PONG"]
    with pytest.raises(RequestFailed, match="WRONGPASS") as caught:
        ask(at(f"redis://:falsch@127.0.0.1:{server.port}"), [["PING"]])
    assert "falsch" not in str(caught.value)
    with pytest.raises(RequestFailed, match="NOAUTH"):
        ask(at(server.url), [["PING"]])


def test_tls_is_spoken_and_the_certificate_checked(tmp_path):
    authority = Authority(tmp_path)
    server = start_redis(tmp_path, tls=authority.issue("redis", "127.0.0.1"))
    try:
        assert ask(at(server.url), [["PING"]], RedisTLS(authority.ca)) == [b"PONG"]
        other = Authority(tmp_path, "other")
        with pytest.raises(RequestFailed, match=r"TLS: .* authority that is not trusted"):
            ask(at(server.url), [["PING"]], RedisTLS(other.ca))
        with pytest.raises(ValueError, match="nothing"):
            ask(at(server.url), [["PING"]], RedisTLS(tmp_path / "nothing"))
    finally:
        server.stop()


@pytest.mark.parametrize(
    "commands",
    [
        [["NONSENSE"]],
        [["SET", "test_errands:text", "x"], ["HSET", "test_errands:text", "a", "b"]],
        [
            ["SET", "test_errands:text", "x"],
            ["MULTI"],
            ["HSET", "test_errands:text", "a", "b"],
            ["EXEC"],
        ],
    ],
)
def test_an_error_in_any_answer_fails_the_errand(redis_server, commands):
    with pytest.raises(RequestFailed, match=rf"Redis {redis_server.url}: (ERR|WRONGTYPE)"):
        ask(at(redis_server.url), commands)


def test_a_redis_that_is_not_there_is_named_with_the_reason():
    port = free_port()
    with pytest.raises(RequestFailed, match=f"Redis redis://127.0.0.1:{port}: .*refused"):
        ask(at(f"redis://127.0.0.1:{port}"), [["PING"]])


def test_a_redis_that_hangs_is_given_up(own_redis, monkeypatch):
    monkeypatch.setattr(one_shot, "PATIENCE", 0.1)
    server = own_redis()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RequestFailed, match=r"no answer in 0\.1 seconds"):
            ask(at(server.url), [["PING"]])
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_an_interrupt_ends_it_and_the_way_interrupts_are_taken_stays(own_redis):
    server = own_redis()
    before = signal.getsignal(signal.SIGINT)
    os.kill(server.process.pid, signal.SIGSTOP)
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(at(server.url), [["PING"]])
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
        interrupt.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_ask_too(redis_server):
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(ask(at(redis_server.url), [["PING"]])))
    thread.start()
    thread.join(20)
    assert answers == [[b"PONG"]]
