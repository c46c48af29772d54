"""Last values from one hub to another, through a file: all, in bounds, never over newer ones."""

from __future__ import annotations

import os

import msgspec
import pytest
import pytest_twisted
from core_doubles import FixedClock, make_hub, publish
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, reactor
from waiting import until

from pushservice.fanout.hub import Hub
from pushservice.limits import Limits
from pushservice.workers.handover import dump_values, load_values


@pytest.fixture
def file():
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


def known(hub: Hub) -> dict[str, tuple[int, bytes]]:
    return {symbol: (t, payload) for symbol, t, payload in hub.values.newest_first()}


async def hand_over(source: Hub, successor: Hub, descriptor: int) -> tuple[int, int]:
    return await dump_values(source, descriptor), await load_values(successor, descriptor)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1234])
async def test_a_successor_knows_all_that_its_source_knew(file, count):
    clock = FixedClock()
    source, successor = make_hub(clock), make_hub(clock)
    for at in range(count):
        publish(source, (f"S{at}", b"%d" % at))
        clock.advance(0.001)
    assert await hand_over(source, successor, file) == (count, count)
    assert known(successor) == known(source)
    assert len(known(successor)) == count
    assert successor.recent_symbols(5) == source.recent_symbols(5)
    assert os.fstat(file).st_size == 0, "no memory is kept"


@pytest_twisted.ensureDeferred
async def test_payloads_of_any_bytes_and_any_size_arrive(file):
    source, successor = make_hub(), make_hub()
    publish(source, ("A", bytes(range(256))), ("B", b""), ("ü/€", b"x" * 3_000_000))
    assert await hand_over(source, successor, file) == (3, 3)
    assert known(successor) == known(source)


@pytest_twisted.ensureDeferred
async def test_a_file_is_used_again_whatever_was_left_in_it(file):
    source, successor, later = make_hub(), make_hub(), make_hub()
    publish(source, *[(f"S{at}", b"1") for at in range(2000)])
    await dump_values(source, file)
    publish(later, ("A", b"2"))
    assert await hand_over(later, successor, file) == (1, 1)
    assert set(known(successor)) == {"A"}


@pytest_twisted.ensureDeferred
async def test_what_is_no_bequest_is_an_error(file):
    os.write(file, (5).to_bytes(4, "big") + b"\xc1\xc1\xc1\xc1\xc1")
    with pytest.raises(msgspec.DecodeError):
        await load_values(make_hub(), file)


@pytest_twisted.ensureDeferred
async def test_others_are_served_between_the_steps_and_what_they_change_does_no_harm(file):
    clock = FixedClock()
    source, successor = make_hub(clock), make_hub(clock)
    payload = b"1" * 1000
    publish(source, *[(f"S{at}", payload) for at in range(30_000)])
    work = defer.Deferred.fromCoroutine(dump_values(source, file))
    turn: defer.Deferred[None] = defer.Deferred()
    while not os.fstat(file).st_size:
        reactor.callLater(0, turn.callback, None)
        await turn
        turn = defer.Deferred()
    assert not work.called, "the reactor has its turn between the steps"
    source.values.forget("S29999")
    publish(source, ("NEW", b"1"))
    await until(lambda: work.called, "the values")
    assert await work == 29_999
    work = defer.Deferred.fromCoroutine(load_values(successor, file))
    publish(successor, ("S2", b"newer"))
    await work
    assert known(successor)["S2"][1] == b"newer"
    assert len(known(successor)) == 29_999


SYMBOLS = st.sampled_from([f"S{at}" for at in range(8)])
QUOTES = st.lists(SYMBOLS, max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    before=QUOTES,
    both=QUOTES,
    own=st.lists(SYMBOLS, max_size=4),
    watched=st.sets(SYMBOLS, max_size=3),
    most=st.integers(1, 10),
)
def test_a_successor_knows_the_newest_of_both_in_order_and_within_its_bounds(
    before, both, own, watched, most
):
    """Some quotes the source alone had, some both, and some only the successor in its own feed."""
    clock = FixedClock()
    limits = Limits(total_symbols=most)
    source, successor = make_hub(clock), make_hub(clock, limits=limits)
    at = 0

    def quote(symbol: str, *hubs: Hub) -> None:
        nonlocal at
        at += 1
        clock.advance(0.001)
        for hub in hubs:
            publish(hub, (symbol, b"%d" % at))

    for symbol in before:
        quote(symbol, source)
    for symbol in both:
        quote(symbol, source, successor)
    for symbol in own:
        quote(symbol, successor)
    ours, theirs = known(successor), known(source)
    taken = {each[0] for each in source.values.newest_first() if successor.values.inherit(*each)}
    now = known(successor)
    assert ours.items() <= now.items(), "what its own feed brought stays"
    assert len(now) <= most
    assert now == {**{symbol: theirs[symbol] for symbol in taken}, **ours}
    assert taken <= theirs.keys() - ours.keys()
    left_out = theirs.keys() - now.keys()
    assert not left_out or len(now) == most, "only for want of room"
    assert all(theirs[one][0] >= theirs[other][0] for one in taken for other in left_out)
    # The oldest goes first when others come.
    in_order = sorted(now, key=lambda symbol: now[symbol][0])
    for new in range(len(in_order)):
        publish(
            successor, *[(f"N{new}-{more}", b"1") for more in range(most - len(known(successor)))]
        )
        known_now = known(successor)
        publish(successor, (f"N{new}", b"1"))
        gone = known_now.keys() - known(successor).keys()
        assert gone == {in_order[new]}
