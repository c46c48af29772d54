"""Several sources as one feed: up while all are, down as soon as one is not."""

from __future__ import annotations

import pytest
import pytest_twisted

from pushservice.feed.combined import CombinedFeed


class Source:
    """A feed that is up when the test says so."""

    def __init__(self, feeds: CombinedFeed, name: str) -> None:
        self.feeds = feeds
        self.name = name
        self.up = False
        self.running = False

    @property
    def connection(self) -> str | None:
        return self.name if self.up else None

    def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    def turn(self, up: bool) -> None:
        self.up = up
        self.feeds.source_changed(self, up)


class Shards:
    """Several sources, and the changes of the combined feed."""

    def __init__(self, count: int) -> None:
        self.told: list[bool] = []
        self.feeds = CombinedFeed(self.told.append)
        self.sources = [Source(self.feeds, f"c{at}") for at in range(count)]
        for source in self.sources:
            self.feeds.add(source)


def test_one_source_alone_is_the_feed():
    shards = Shards(1)
    shards.sources[0].turn(True)
    shards.sources[0].turn(False)
    assert shards.told == [True, False]


def test_the_feed_is_up_only_once_all_sources_are():
    shards = Shards(3)
    for source in shards.sources[:2]:
        source.turn(True)
    assert shards.told == []
    assert not shards.feeds.up
    shards.sources[2].turn(True)
    assert shards.told == [True]
    assert shards.feeds.up


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_lost_source_takes_the_feed_down_until_it_returns(which):
    shards = Shards(3)
    for source in shards.sources:
        source.turn(True)
    shards.told.clear()
    shards.sources[which].turn(False)
    assert shards.told == [False]
    assert not shards.feeds.up
    shards.sources[which].turn(True)
    assert shards.told == [False, True]


def test_the_feed_stays_down_while_another_source_is_down():
    shards = Shards(2)
    for up in (True, False):
        for source in shards.sources:
            source.turn(up)
    shards.told.clear()
    shards.sources[1].turn(True)
    assert True not in shards.told
    shards.sources[0].turn(True)
    assert shards.told[-1] is True


def test_a_source_that_fails_is_reported_before_the_others_were_up():
    shards = Shards(2)
    shards.feeds.source_changed(shards.sources[0], False)
    assert shards.told == [False]


def test_connections_are_those_of_sources_that_are_up():
    shards = Shards(3)
    assert shards.feeds.connections() == []
    shards.sources[2].turn(True)
    shards.sources[0].turn(True)
    assert shards.feeds.connections() == ["c0", "c2"]


@pytest_twisted.ensureDeferred
async def test_all_are_started_and_stopped_together():
    shards = Shards(3)
    assert not any(source.running for source in shards.sources)
    shards.feeds.start()
    assert all(source.running for source in shards.sources)
    await shards.feeds.stop()
    assert not any(source.running for source in shards.sources)
