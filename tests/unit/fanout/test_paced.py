"""One client's subscriptions of one interval."""

from __future__ import annotations

import pytest

from pushservice.fanout.paced import Changes, Paced
from pushservice.fanout.topic import Topic


def quoted(topic: Topic, changes: Changes, updates: int = 1) -> None:
    for _ in range(updates):
        topic.n += 1
        changes.mark(topic, topic.n - 1)


@pytest.fixture
def topic() -> Topic:
    return Topic("A", 5)


def test_changes_keep_the_number_before_the_first_quote(topic):
    changes = Changes()
    assert changes.before(topic) == 5
    quoted(topic, changes, 3)
    assert changes.before(topic) == 5
    assert changes.take() == {topic: 5}
    assert changes.take() == {}
    assert changes.before(topic) == 8


def test_a_client_that_came_between_two_turns_has_its_own_number(topic):
    changes = Changes()
    quoted(topic, changes, 2)
    paced = Paced(100, changes)
    paced.add(topic, topic.n)
    quoted(topic, changes, 3)
    assert changes.before(topic) == 5
    assert paced.last(topic) == 7
    # Its group merges four, and it only two.
    assert paced.correction({topic}, {topic: 4}) == -2
    assert paced.since == {}


def test_a_client_with_the_newest_update_gets_none(topic):
    changes = Changes()
    quoted(topic, changes)
    paced = Paced(100, changes)
    paced.add(topic, topic.n)
    topics = {topic}
    assert paced.correction(topics, {topic: 0}) == 0
    assert topics == set()


def test_a_topic_that_is_removed_leaves_nothing(topic):
    paced = Paced(100, Changes())
    paced.add(topic, 5)
    paced.remove(topic)
    assert (paced.topics, paced.since) == ({}, {})
