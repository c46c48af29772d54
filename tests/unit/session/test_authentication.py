"""AccessControl: clients that do not authenticate, tokens that end, and revocations."""

from __future__ import annotations

import pytest
from authentication_doubles import ANN, DELAY, LEEWAY, TIMEOUT, AuthenticatedHub, FakeAuthenticator
from core_doubles import FixedClock

from pushservice.auth.identity import Identity, Refused, Rights
from pushservice.auth.revocations import Revocations
from pushservice.session.authentication import TOLD_AHEAD, AccessControl

NOW = 1_763_800_000.0


class Visitor:
    """A client that notes what is done to it, and when."""

    def __init__(self, clock: FixedClock, identity: Identity | None = None) -> None:
        self.identity = identity
        self.clock = clock
        self.told: list[tuple[object, ...]] = []

    def authentication_timed_out(self) -> None:
        self.told.append(("too late", self.clock.seconds() - NOW))

    def token_expiring(self, left_ms: int) -> None:
        self.told.append(("expiring", self.clock.seconds() - NOW, left_ms))

    def token_ended(self, reason: str) -> None:
        self.told.append(("out", self.clock.seconds() - NOW, reason))


@pytest.fixture
def served() -> AuthenticatedHub:
    return AuthenticatedHub()


def outcome(served: AuthenticatedHub, token: str) -> Identity | Refused:
    found: list[Identity | Refused] = []
    served.access_control.verify(token, found.append)
    assert len(found) == 1
    return found[0]


def test_a_known_token_is_accepted_and_another_refused(served):
    assert outcome(served, "ann") is ANN
    assert str(outcome(served, "bob")) == "nobody knows it"


def test_a_token_that_was_revoked_is_refused_even_if_that_came_while_it_was_looked_at(served):
    served.accept_token("t", token_id="7")
    served.authenticator.later = True
    found: list[Identity | Refused] = []
    served.access_control.verify("t", found.append)
    served.revocations.revoke("token", "7")
    served.authenticator.answer()
    assert str(found[0]) == "it was revoked"


def test_a_delay_that_is_not_offered_is_refused_by_name(served):
    served.accept_token("t", delay_s=DELAY + 1)
    assert "a delay of 901 s" in str(outcome(served, "t"))
    served.accept_token("t", delay_s=1)
    assert isinstance(outcome(served, "t"), Identity)


def test_a_client_has_limited_time_to_authenticate(served):
    visitor = Visitor(served.clock)
    served.access_control.connected(visitor)
    served.clock.pass_time(TIMEOUT - 0.01)
    assert visitor.told == []
    served.clock.pass_time(0.26)
    assert [what for what, *_ in visitor.told] == ["too late"]
    assert TIMEOUT <= visitor.told[0][1] <= TIMEOUT + 0.25
    served.clock.pass_time(100)
    assert len(visitor.told) == 1
    assert served.clock.calls == []


def test_an_authenticated_client_has_no_deadline_to_authenticate(served):
    visitor = Visitor(served.clock)
    served.access_control.connected(visitor)
    served.access_control.authenticated(visitor, ANN)
    assert visitor.identity is ANN
    served.clock.pass_time(1e6)
    assert visitor.told == []


def test_who_left_is_not_called_and_nothing_stays(served):
    visitors = [Visitor(served.clock) for _ in range(3)]
    for visitor in visitors:
        served.access_control.connected(visitor)
        served.clock.pass_time(0.5)
    served.access_control.authenticated(visitors[0], Identity("ann", "7", NOW + 100))
    for visitor in visitors:
        served.access_control.left(visitor)
        served.access_control.left(visitor)
    assert served.clock.calls == []
    served.revoke("ann", "7")
    served.clock.pass_time(200)
    assert [visitor.told for visitor in visitors] == [[], [], []]


def test_the_end_of_a_token_is_told_ahead_and_comes_after_the_leeway(served):
    visitor = Visitor(served.clock, Identity("ann", expires_at=NOW + 3600))
    served.access_control.connected(visitor)
    served.clock.pass_time(3600 - TOLD_AHEAD - 0.01)
    assert visitor.told == []
    served.clock.pass_time(0.02)
    assert visitor.told == [("expiring", 3600 - TOLD_AHEAD, TOLD_AHEAD * 1000)]
    served.clock.pass_time(TOLD_AHEAD + LEEWAY - 0.02)
    assert len(visitor.told) == 1
    served.clock.pass_time(0.26)
    what, at, reason = visitor.told[1]
    assert (what, reason) == ("out", "the token has expired")
    assert 0 <= at - 3600 - LEEWAY <= 0.25


@pytest.mark.parametrize("left", [-LEEWAY / 2, 0, 1, 30])
def test_a_token_that_ends_soon_is_told_at_once_and_ends_in_time(served, left):
    visitor = Visitor(served.clock, Identity("ann", expires_at=NOW + left))
    served.access_control.connected(visitor)
    served.clock.pass_time(0)
    assert visitor.told == [("expiring", 0, max(0, left * 1000))]
    served.clock.pass_time(left + LEEWAY + 0.25)
    assert visitor.told[1][0] == "out"


def test_a_new_token_takes_the_place_of_the_one_before(served):
    visitor = Visitor(served.clock, Identity("ann", "1", NOW + 70))
    served.access_control.connected(visitor)
    served.clock.pass_time(20)
    assert len(visitor.told) == 1
    served.access_control.authenticated(visitor, Identity("ann", "2", NOW + 170))
    served.clock.pass_time(80)
    assert visitor.told == [("expiring", 10, 60_000)], "the old end is none any more"
    served.revoke(token="1")
    assert len(visitor.told) == 1
    served.clock.pass_time(20)
    assert visitor.told[1] == ("expiring", 110, 60_000), "of the new end it is told anew"
    served.clock.pass_time(200)
    assert [what for what, *_ in visitor.told] == ["expiring", "expiring", "out"]


def test_an_end_in_years_takes_no_timer_longer_than_a_day(served):
    visitor = Visitor(served.clock, Identity("ann", expires_at=NOW + 400 * 86_400))
    served.access_control.connected(visitor)
    for _ in range(399):
        assert [call.getTime() - served.clock.seconds() for call in served.clock.calls] == [86_400]
        served.clock.pass_time(86_400)
    assert visitor.told == []
    served.clock.pass_time(86_400)
    assert [what for what, *_ in visitor.told] == ["expiring"]


def test_revoking_a_user_ends_the_access_of_that_user_alone(served):
    ann, again, bob = (Visitor(served.clock, Identity(user)) for user in ("ann", "ann", "bob"))
    anybody = Visitor(served.clock, Identity())
    for visitor in (ann, again, bob, anybody, Visitor(served.clock)):
        served.access_control.connected(visitor)
    served.revoke(user="ann")
    assert ann.told == again.told == [("out", 0, "the token was revoked")]
    assert bob.told == anybody.told == []
    served.access_control.stop()


def test_revoking_a_token_ends_the_access_of_that_token_alone(served):
    first, second = (Visitor(served.clock, Identity("ann", token)) for token in ("1", "2"))
    served.access_control.connected(first)
    served.access_control.connected(second)
    served.revoke(token="1")
    assert len(first.told) == 1
    assert second.told == []


def test_who_has_a_token_that_was_issued_after_a_users_revocation_stays(served):
    visitor = Visitor(served.clock, Identity("ann", issued_at=NOW + 60))
    served.access_control.connected(visitor)
    served.revoke(user="ann")
    assert visitor.told == []


def test_revoking_a_user_ends_access_even_if_the_issuers_clock_is_ahead(served):
    ann, bob = (Visitor(served.clock, Identity(user, issued_at=NOW + 2)) for user in ("ann", "bob"))
    served.access_control.connected(ann)
    served.access_control.connected(bob)
    served.revocations.revoke("user", "ann")
    served.access_control.end_revoked("ann", None, just_now=True)
    assert ann.told == [("out", 0, "the token was revoked")]
    assert bob.told == []


def test_many_at_one_moment_share_one_timer_and_may_take_each_other_along(served):
    class Pair(Visitor):
        other: Pair

        def authentication_timed_out(self) -> None:
            super().authentication_timed_out()
            served.access_control.left(self)
            served.access_control.left(self.other)

    one, two = Pair(served.clock), Pair(served.clock)
    one.other, two.other = two, one
    for visitor in (one, two, *(Visitor(served.clock) for _ in range(100))):
        served.access_control.connected(visitor)
    assert len(served.clock.calls) == 1
    served.clock.pass_time(TIMEOUT + 0.25)
    assert [len(one.told), len(two.told)] == [1, 0]
    assert served.clock.calls == []


def test_a_client_that_raises_does_not_stop_the_time_of_the_others(served):
    class Broken(Visitor):
        def authentication_timed_out(self) -> None:
            raise ZeroDivisionError

    served.access_control.connected(Broken(served.clock))
    served.clock.pass_time(1)
    visitor = Visitor(served.clock)
    served.access_control.connected(visitor)
    with pytest.raises(ZeroDivisionError):
        served.clock.pass_time(TIMEOUT)
    served.clock.pass_time(TIMEOUT)
    assert len(visitor.told) == 1


def test_clients_that_come_and_go_with_tokens_for_years_leave_nothing_to_remember():
    clock = FixedClock(NOW)
    access_control = AccessControl(
        clock, FakeAuthenticator(), Revocations(clock), TIMEOUT, LEEWAY, lambda _: None
    )
    stays = Visitor(clock, Identity("ann", expires_at=NOW + 90))
    access_control.connected(stays)
    for number in range(10_000):
        visitor = Visitor(clock, Identity(f"u{number}", f"t{number}", NOW + 1e6 + number))
        access_control.connected(visitor)
        access_control.left(visitor)
    kept = [access_control._due, access_control._when, access_control._times]
    kept += [access_control._by_user, access_control._by_token, access_control._told]
    assert max(map(len, kept)) <= 200
    clock.pass_time(31)
    assert len(stays.told) == 1, "and forgets nobody who stays"


def test_after_a_stop_nothing_is_left_with_the_clock(served):
    served.access_control.connected(Visitor(served.clock))
    served.access_control.stop()
    served.access_control.stop()
    assert served.clock.calls == []


def test_rights_that_allow_nothing_are_no_reason_to_refuse(served):
    served.accept_token("t", "!*")
    assert outcome(served, "t") == Identity("ann", rights=Rights(("!*",)))
