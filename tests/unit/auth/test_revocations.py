"""Revocations: who is refused from when on, and how much is remembered for how long."""

from __future__ import annotations

import pytest
from core_doubles import FixedClock

from pushservice.auth import revocations as module
from pushservice.auth.identity import Identity
from pushservice.auth.revocations import KEPT_FOR, Revocations

NOW = 1_763_800_000.5


@pytest.fixture
def clock():
    return FixedClock(NOW)


@pytest.fixture
def revocations(clock):
    return Revocations(clock)


def test_at_first_nobody_is_revoked(revocations):
    assert not revocations.revoked(Identity("ann", "7"))


def test_a_revoked_token_is_refused_whenever_it_was_issued_and_no_other(revocations):
    assert revocations.revoke("token", "7")
    assert revocations.revoked(Identity("ann", "7", issued_at=NOW + 100))
    assert not revocations.revoked(Identity("ann", "8", issued_at=NOW - 100))
    assert not revocations.revoked(Identity("7", None))


def test_all_tokens_of_a_revoked_user_are_refused_up_to_the_second_of_the_revocation(revocations):
    assert revocations.revoke("user", "ann")
    refused = [NOW - 100, NOW - 0.5, NOW, None]
    assert all(revocations.revoked(Identity("ann", issued_at=at)) for at in refused)
    assert not revocations.revoked(Identity("ann", issued_at=NOW + 0.5))
    assert not revocations.revoked(Identity("bob", issued_at=NOW - 100))
    assert not revocations.revoked(Identity(None, "ann", issued_at=NOW - 100))


def test_a_revocation_in_whole_seconds_covers_the_second_it_was_in(revocations):
    revocations.revoke("user", "ann", NOW - 10.5)
    assert revocations.revoked(Identity("ann", issued_at=NOW - 10.5))
    assert not revocations.revoked(Identity("ann", issued_at=NOW - 9.5))


def test_within_one_second_nobody_knows_which_came_first_and_so_it_is_refused(revocations):
    revocations.revoke("user", "ann", NOW - 10.3)
    assert revocations.revoked(Identity("ann", issued_at=NOW - 10.2))


def test_the_latest_revocation_of_a_user_holds_and_only_a_later_one_is_news(revocations):
    assert revocations.revoke("user", "ann", NOW - 50)
    assert not revocations.revoke("user", "ann", NOW - 60)
    assert not revocations.revoke("user", "ann", NOW - 50)
    assert revocations.revoke("user", "ann", NOW - 40)
    assert revocations.revoked(Identity("ann", issued_at=NOW - 45))
    assert len(revocations) == 1


def test_a_moment_in_the_future_counts_as_when_it_was_first_heard_of(clock, revocations):
    assert revocations.revoke("user", "ann", NOW * 1000)
    clock.advance(10)
    assert not revocations.revoke("user", "ann", NOW * 1000)
    assert revocations.revoked(Identity("ann", issued_at=NOW))
    assert not revocations.revoked(Identity("ann", issued_at=NOW + 5))


def test_a_revocation_is_forgotten_after_31_days_even_if_nothing_else_comes(clock, revocations):
    revocations.revoke("token", "7")
    revocations.revoke("user", "ann")
    clock.advance(KEPT_FOR - 1)
    assert revocations.revoked(Identity(None, "7"))
    assert revocations.revoked(Identity("ann"))
    clock.advance(1)
    assert not revocations.revoked(Identity(None, "7"))
    assert not revocations.revoked(Identity("ann"))
    revocations.revoke("token", "8")
    assert len(revocations) == 1


def test_what_is_older_than_31_days_is_no_news(revocations):
    assert not revocations.revoke("token", "7", NOW - KEPT_FOR)
    assert len(revocations) == 0


def test_of_too_many_the_oldest_are_dropped_in_whatever_order_they_came(monkeypatch, revocations):
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    for ago in (5, 9, 1):
        assert revocations.revoke("token", f"t{ago}", NOW - ago)
    assert revocations.revoke("token", "t2", NOW - 2)
    assert not revocations.revoke("token", "t8", NOW - 8)
    held = [ago for ago in (1, 2, 5, 8, 9) if revocations.revoked(Identity(None, f"t{ago}"))]
    assert held == [1, 2, 5]
    assert len(revocations) == 3


def test_a_hundred_thousand_are_remembered(revocations):
    for at in range(module.MAX_ENTRIES + 5):
        revocations.revoke("token", str(at), NOW - 1_000_000 + at)
    assert len(revocations) == module.MAX_ENTRIES == 100_000
    assert not revocations.revoked(Identity(None, "4"))
    assert revocations.revoked(Identity(None, "5"))


def test_one_name_that_is_revoked_again_and_again_takes_no_more_room(clock, revocations):
    revocations.revoke("user", "bob")
    for _ in range(5000):
        clock.advance(1)
        assert revocations.revoke("user", "ann")
    assert len(revocations) == 2
    assert len(revocations._oldest) <= 200
