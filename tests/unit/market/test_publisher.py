"""What a source has due goes through a real Redis, and each message is accounted for."""

from __future__ import annotations

import os
import signal

import pytest
import pytest_twisted
from free_ports import free_port
from twisted.internet import defer, reactor
from waiting import until

from pushservice.market.playback import PlaybackSource
from pushservice.market.publisher import Publisher
from pushservice.market.recording_format import BadLine, Message
from pushservice.redis.url import redis_address


class Run:
    """A recording that is published at once, and what became of each message."""

    def __init__(self, url: str, messages, **options: object) -> None:
        self.settled: list[int | None] = []
        source = PlaybackSource(lambda: messages, None, **options)
        self.publisher = Publisher("test", reactor, redis_address(url), source, self.settled.append)


@pytest.fixture
def publishing():
    """publishing(url, messages, **options): a Run that was started and is stopped at the end."""
    runs = []

    def start(*arguments, **options) -> Run:
        runs.append(Run(*arguments, **options))
        runs[-1].publisher.start()
        return runs[-1]

    yield start
    for run in runs:
        pytest_twisted.blockon(defer.ensureDeferred(run.publisher.stop()))


def messages(count: int) -> list[Message]:
    return [Message(n, f"test_publishing.{n % 3}", b"%d" % n) for n in range(count)]


@pytest_twisted.ensureDeferred
async def test_it_is_done_once_all_is_answered(redis_server, publishing):
    run = publishing(redis_server.url, messages(5000))
    await run.publisher.done
    assert run.settled == [0] * 5000
    assert run.publisher.outstanding == 0
    assert run.publisher.up


@pytest_twisted.ensureDeferred
async def test_the_number_of_receivers_is_reported(redis_server, publishing):
    listener = Run(redis_server.url, [])
    listener.publisher.start()
    await until(lambda: listener.publisher.up, "the link")
    connection = listener.publisher.link.up
    connection.transport.write(b"*2\r\n$9\r\nSUBSCRIBE\r\n$17\r\ntest_publishing.1\r\n")
    await connection.ping().addErrback(lambda _: None)
    run = publishing(redis_server.url, messages(6))
    await run.publisher.done
    await listener.publisher.stop()
    assert run.settled == [0, 1, 0, 0, 1, 0]


@pytest_twisted.ensureDeferred
async def test_it_waits_for_a_redis_that_is_not_there_yet(own_redis, publishing):
    port = free_port()
    run = publishing(f"redis://127.0.0.1:{port}", messages(10))
    await until(lambda: run.publisher.link.failures, "a failure")
    own_redis(port=port)
    await run.publisher.done
    assert run.settled == [0] * 10


@pytest_twisted.ensureDeferred
async def test_it_continues_after_a_loss_and_unanswered_messages_count_as_failed(
    own_redis, publishing
):
    server = own_redis()
    run = publishing(server.url, messages(100), loop=True)
    await until(lambda: len(run.settled) > 1000, "some messages")
    os.kill(server.process.pid, signal.SIGSTOP)
    await until(lambda: run.publisher.outstanding > 100, "some under way")
    server.stop()
    await until(lambda: not run.publisher.up, "the loss")
    await until(lambda: not run.publisher.outstanding, "all to be settled")
    failed = run.settled.count(None)
    assert failed > 0
    own_redis(port=server.port)
    before = len(run.settled)
    await until(lambda: len(run.settled) > before + 1000, "more messages")
    assert run.settled.count(None) == failed
    assert not run.publisher.done.called


@pytest_twisted.ensureDeferred
async def test_an_exception_of_the_source_is_reported_once(redis_server, publishing):
    def broken():
        yield from messages(3)
        raise BadLine("oops")

    run = publishing(redis_server.url, broken())
    with pytest.raises(BadLine, match="oops"):
        await run.publisher.done
    assert run.settled == [0] * 3, "what came before was published"
