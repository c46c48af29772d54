"""One-shot commands to a real Redis: all are run, or they fail with one reason."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from free_ports import free_port
from redis_process import Authority, start_redis

from pushservice.redis import one_shot
from pushservice.redis.one_shot import RequestFailed, execute
from pushservice.redis.url import RedisAddress, RedisTLS, redis_address


def address_of(url: str) -> RedisAddress:
    address = redis_address(url)
    assert address is not None
    return address


def test_the_answers_come_in_the_order_of_the_commands(redis_server):
    commands = [["SET", "test_one_shot", b"\xff", "EX", 60], ["GET", "test_one_shot"]]
    for url in (redis_server.url, redis_server.socket_url):
        assert execute(address_of(url), commands) == [b"OK", b"\xff"]


def test_the_login_of_the_url_is_used(own_redis):
    server = own_redis("--requirepass", "geheim")
    assert execute(address_of(f"redis://:geheim@127.0.0.1:{server.port}"), [["PING"]]) == [b"PONG"]
    with pytest.raises(RequestFailed, match="WRONGPASS") as caught:
        execute(address_of(f"redis://:falsch@127.0.0.1:{server.port}"), [["PING"]])
    assert "falsch" not in str(caught.value)
    with pytest.raises(RequestFailed, match="NOAUTH"):
        execute(address_of(server.url), [["PING"]])


def test_the_certificate_is_verified_with_tls(tmp_path):
    authority = Authority(tmp_path)
    server = start_redis(tmp_path, tls=authority.issue("redis", "127.0.0.1"))
    try:
        assert execute(address_of(server.url), [["PING"]], RedisTLS(authority.ca)) == [b"PONG"]
        other = Authority(tmp_path, "other")
        with pytest.raises(RequestFailed, match=r"TLS: .* authority that is not trusted"):
            execute(address_of(server.url), [["PING"]], RedisTLS(other.ca))
        with pytest.raises(ValueError, match="nothing"):
            execute(address_of(server.url), [["PING"]], RedisTLS(tmp_path / "nothing"))
    finally:
        server.stop()


@pytest.mark.parametrize(
    "commands",
    [
        [["NONSENSE"]],
        [["SET", "test_one_shot:text", "x"], ["HSET", "test_one_shot:text", "a", "b"]],
        [
            ["SET", "test_one_shot:text", "x"],
            ["MULTI"],
            ["HSET", "test_one_shot:text", "a", "b"],
            ["EXEC"],
        ],
    ],
)
def test_an_error_in_any_answer_fails_the_request(redis_server, commands):
    with pytest.raises(RequestFailed, match=rf"Redis {redis_server.url}: (ERR|WRONGTYPE)"):
        execute(address_of(redis_server.url), commands)


def test_a_failed_connection_names_redis_and_the_reason():
    port = free_port()
    with pytest.raises(RequestFailed, match=f"Redis redis://127.0.0.1:{port}: .*refused"):
        execute(address_of(f"redis://127.0.0.1:{port}"), [["PING"]])


def test_a_redis_that_hangs_times_out(own_redis, monkeypatch):
    monkeypatch.setattr(one_shot, "TIMEOUT", 0.1)
    server = own_redis()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RequestFailed, match=r"no answer in 0\.1 seconds"):
            execute(address_of(server.url), [["PING"]])
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_an_interrupt_ends_it_and_the_signal_handler_is_restored(own_redis):
    server = own_redis()
    before = signal.getsignal(signal.SIGINT)
    os.kill(server.process.pid, signal.SIGSTOP)
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(address_of(server.url), [["PING"]])
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
        interrupt.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_execute_too(redis_server):
    answers: list[object] = []
    thread = threading.Thread(
        target=lambda: answers.append(execute(address_of(redis_server.url), [["PING"]]))
    )
    thread.start()
    thread.join(20)
    assert answers == [[b"PONG"]]
