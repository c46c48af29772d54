"""What one client watches, each symbol in one of the modes."""

from __future__ import annotations

from pushservice.fanout.paced import Changes, Paced
from pushservice.fanout.topic import Topic
from pushservice.fanout.watchlist import RAW, Watchlist, raw_and_interval


def test_a_symbol_in_the_common_mode_costs_no_more_than_its_place():
    watchlist, topic = Watchlist(), Topic("A")
    watchlist.watch(topic, None)
    assert watchlist.topics == {topic: None}
    assert watchlist.special is None
    watchlist.unwatch(topic)
    assert watchlist.topics == {}


def test_subscriptions_of_one_interval_are_found_until_the_last_is_gone():
    watchlist, topics = Watchlist(), [Topic("A"), Topic("B")]
    paced = Paced(100, Changes())
    for topic in topics:
        paced.add(topic, 0)
        watchlist.watch(topic, paced)
    assert watchlist.paced(100) is paced
    assert watchlist.paced(200) is None
    for topic, still in zip(topics, (paced, None), strict=True):
        paced.remove(topic)
        watchlist.unwatch(topic)
        assert watchlist.paced(100) is still
    assert watchlist.special is None


def test_the_last_number_of_a_paced_symbol_is_that_of_its_last_turn():
    watchlist, topic = Watchlist(), Topic("A", 5)
    watchlist.watch(topic, RAW)
    topic.n = 7
    assert watchlist.last(topic) == 7
    watchlist.unwatch(topic)
    paced = Paced(100, Changes())
    paced.add(topic, 6)
    watchlist.watch(topic, paced)
    assert watchlist.last(topic) == 6


def test_each_mode_is_raw_or_has_an_interval_or_neither():
    assert raw_and_interval(RAW) == (True, 0)
    assert raw_and_interval(None) == (False, 0)
    assert raw_and_interval(Paced(250, Changes())) == (False, 250)
