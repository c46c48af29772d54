"""Who watches one symbol, and the audience that a quote of it is offered to."""

from __future__ import annotations

import pytest
from core_doubles import Client, make_hub

from pushservice.fanout.hub import Hub
from pushservice.fanout.topic import Topic
from pushservice.fanout.watchers import Watchers
from pushservice.protocol.codecs import JSON, RAW


@pytest.fixture
def hub() -> Hub:
    return make_hub()


@pytest.fixture
def topic() -> Topic:
    return Topic("A")


@pytest.fixture
def watchers(topic) -> Watchers:
    return Watchers(topic)


def outboxes(hub: Hub, count: int = 2, codec=JSON):
    return [Client(hub, f"{codec.name}-{n}", codec=codec).outbox for n in range(count)]


def test_the_audience_has_the_append_of_each_client_by_codec(hub, watchers):
    (first, second), (raw,) = outboxes(hub), outboxes(hub, 1, RAW)
    for outbox in (first, raw, second):
        watchers.add(outbox, raw=False)
    audience = watchers.rebuild_audience()
    assert [(codec, offers) for codec, _, offers in audience] == [
        (JSON, (first.offer, second.offer)),
        (RAW, (raw.offer,)),
    ]
    assert watchers.listeners == {first, second, raw}
    assert list(watchers) == [first, raw, second]


def test_an_audience_is_outdated_as_soon_as_interest_changes(hub, topic, watchers):
    first, second = outboxes(hub)
    watchers.add(first, raw=False)
    watchers.rebuild_audience()
    watchers.add(second, raw=False)
    assert (topic.audience, watchers.listeners) == (None, frozenset())
    watchers.remove(second, raw=False)
    assert topic.audience is None
    watchers.remove(first, raw=False)
    assert topic.audience == ()


def test_the_topic_knows_how_many_watch_it(hub, topic, watchers):
    first, second = outboxes(hub)
    watchers.add(first, raw=True)
    watchers.add(second, raw=False)
    assert (topic.watcher_count, topic.raw_watchers, topic.watched) == (2, 1, True)
    watchers.remove(first, raw=True)
    watchers.remove(second, raw=False)
    assert (topic.watcher_count, topic.raw_watchers, topic.watched) == (0, 0, False)


def test_nobody_takes_bytes_while_every_client_is_behind_and_none_is_raw(hub, watchers):
    first, second = outboxes(hub)
    watchers.add(first, raw=False)
    watchers.add(second, raw=False)
    first.blocked()
    assert not watchers.nobody_takes()
    second.blocked()
    assert watchers.nobody_takes()
    watchers.remove(second, raw=False)
    watchers.add(second, raw=True)
    assert not watchers.nobody_takes()


def test_a_client_of_a_group_is_found_by_its_topics(hub):
    client = Client(hub, "t-1")
    client.say(b'{"op":"subscribe","symbols":["B"],"interval":100}')
    assert hub.watchers(hub.topic("B")) == [client.outbox]
    client.say(b'{"op":"subscribe","symbols":["C"],"interval":100}')
    client.say(b'{"op":"unsubscribe","symbols":["B"]}')
    assert hub.topic("B") is None
    assert hub.watchers(hub.topic("C")) == [client.outbox]
    assert hub.topic("C").watcher_count == 1
