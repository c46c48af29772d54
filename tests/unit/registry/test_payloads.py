"""Pending payloads: each symbol's latest, in batches, once a while."""

from __future__ import annotations

import pytest

from pushservice.registry.payloads import COLLECT_EVERY, PendingPayloads


class Topic:
    """A symbol's topic, with what PendingPayloads reads of it; `t` is in milliseconds."""

    def __init__(self, t: int = 0, payload: bytes | None = b"1", *, watched: bool = True) -> None:
        self.t = t
        self.payload = payload
        self.watched = watched


@pytest.fixture
def pending():
    return PendingPayloads(100.0)


def test_quoted_and_known_topics_are_taken_once_the_quoted_first(pending):
    quoted, known = Topic(), Topic()
    pending.add_known(known)
    pending.add_quoted({quoted: None})
    pending.add_quoted({quoted: None})
    assert len(pending) == 2
    assert pending.take(101.0) == [(quoted, True), (known, False)]
    assert pending.take(102.0) == []


def test_quotes_are_collected_only_every_so_often(pending):
    topic = Topic()
    pending.add_quoted({topic: None})
    assert pending.take(100.0) == []
    assert pending.take(100.0 + COLLECT_EVERY) == [(topic, True)]
    pending.add_quoted({topic: None})
    assert pending.take(100.1 + COLLECT_EVERY) == []
    assert pending.take(100.0 + 2 * COLLECT_EVERY) == [(topic, True)]


def test_a_batch_is_limited_in_payloads_and_bytes(pending):
    small = [Topic() for _ in range(201)]
    large = [Topic(payload=bytes(200_000)) for _ in range(3)]
    pending.add_quoted(dict.fromkeys(small + large))
    sizes = []
    while taken := pending.take(101.0):
        sizes.append(len(taken))
    assert sizes == [200, 3, 1]


def test_topics_without_watchers_or_payload_are_skipped(pending):
    pending.add_quoted({Topic(watched=False): None, Topic(payload=None): None})
    assert pending.take(101.0) == []
    assert len(pending) == 0


def test_a_batch_that_was_put_back_is_taken_again_before_the_rest(pending):
    topics = [Topic() for _ in range(250)]
    pending.add_quoted(dict.fromkeys(topics))
    first = pending.take(101.0)
    pending.put_back(first)
    assert pending.take(101.0) == first
    assert pending.take(101.0) == [(topic, True) for topic in topics[200:]]


def test_topics_that_nobody_watches_any_more_are_dropped(pending):
    stays = Topic()
    for topic in (stays, Topic(watched=False)):
        pending.add_quoted({topic: None})
    pending.add_known(Topic(watched=False))
    pending.drop_unwatched()
    assert len(pending) == 1
    assert pending.take(101.0) == [(stays, True)]


def test_after_a_resync_only_payloads_since_the_last_confirmed_collection_are_new(pending):
    pending.add_quoted({Topic(): None})
    pending.take(110.0)
    pending.confirm()
    pending.add_quoted({Topic(): None})
    pending.take(120.0)
    pending.clear()
    before, after = Topic(109_999), Topic(110_000)
    pending.resync([before, after])
    assert pending.take(120.0) == [(after, True), (before, False)]


def test_a_collection_is_confirmed_only_with_its_last_batch(pending):
    pending.add_quoted({Topic(): None for _ in range(201)})
    pending.take(110.0)
    pending.confirm()
    pending.clear()
    topic = Topic(105_000)
    pending.resync([topic])
    assert pending.take(120.0) == [(topic, True)]


def test_nothing_is_left_once_cleared(pending):
    pending.add_quoted({Topic(): None for _ in range(201)})
    pending.take(110.0)
    pending.add_quoted({Topic(): None})
    pending.add_known(Topic())
    pending.clear()
    assert len(pending) == 0
