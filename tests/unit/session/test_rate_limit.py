"""What one client may send: bursts, refills, overdraft, exhaustion, and rates of no limit."""

from __future__ import annotations

import pytest

from pushservice.limits import BURST_SECONDS, Limits
from pushservice.session.rate_limit import RateLimit

#: Bytes of a purse that never matters here.
PLENTY = Limits(message_rate=5, byte_rate=0)


def frames(allowance: RateLimit, count: int) -> None:
    for _ in range(count):
        allowance.frame()


def test_ten_seconds_worth_of_frames_may_come_at_once_and_one_more_is_too_many():
    allowance = RateLimit(PLENTY, 100.0)
    allowance.arrived(1, 100.0)
    frames(allowance, 5 * BURST_SECONDS)
    assert not allowance.overdrawn
    allowance.frame()
    assert allowance.overdrawn
    assert not allowance.exhausted


def test_one_second_of_frames_is_refused_with_patience_and_no_more():
    allowance = RateLimit(PLENTY, 100.0)
    frames(allowance, 5 * BURST_SECONDS + 5)
    assert allowance.overdrawn
    assert not allowance.exhausted
    allowance.frame()
    assert allowance.exhausted


def test_frames_come_back_with_time_and_never_beyond_a_burst():
    allowance = RateLimit(PLENTY, 100.0)
    frames(allowance, 5 * BURST_SECONDS + 3)
    allowance.arrived(1, 100.5)
    assert allowance.overdrawn, "half a second brings two and a half of the three"
    allowance.arrived(1, 100.7)
    assert not allowance.overdrawn
    allowance.arrived(1, 100_000.0)
    frames(allowance, 5 * BURST_SECONDS)
    assert not allowance.overdrawn
    allowance.frame()
    assert allowance.overdrawn


def test_a_client_that_keeps_to_the_rate_is_never_refused():
    allowance = RateLimit(PLENTY, 0.0)
    for number in range(1000):
        allowance.arrived(10, number * 0.2)
        allowance.frame()
        assert not allowance.overdrawn


def test_a_client_over_the_rate_is_refused_once_its_burst_is_spent():
    allowance = RateLimit(PLENTY, 0.0)
    refused_at = None
    for number in range(1000):
        # Six a second, where five are allowed: the fifty of the burst last for fifty seconds.
        allowance.arrived(10, number / 6)
        allowance.frame()
        if allowance.overdrawn and refused_at is None:
            refused_at = number / 6
    assert refused_at == pytest.approx(50, abs=1)
    assert allowance.exhausted


def test_ten_seconds_worth_of_bytes_may_come_at_once_and_one_more_is_too_many():
    allowance = RateLimit(Limits(message_rate=0, byte_rate=1000, message=128), 0.0)
    allowance.arrived(6_000, 0.0)
    allowance.arrived(4_000, 0.0)
    assert not allowance.overdrawn
    allowance.arrived(1, 0.0)
    assert allowance.overdrawn
    allowance.arrived(999, 0.0)
    assert not allowance.exhausted
    allowance.arrived(1, 0.0)
    assert allowance.exhausted


def test_bytes_come_back_with_time_and_never_beyond_a_burst():
    allowance = RateLimit(Limits(message_rate=0, byte_rate=1000, message=128), 0.0)
    allowance.arrived(10_500, 0.0)
    allowance.arrived(0, 0.4)
    assert allowance.overdrawn
    allowance.arrived(0, 0.6)
    assert not allowance.overdrawn
    allowance.arrived(10_000, 1e6)
    assert not allowance.overdrawn
    allowance.arrived(1, 1e6)
    assert allowance.overdrawn


def test_however_low_the_rate_two_whole_messages_are_allowed_and_a_third_is_refused_with_patience():
    allowance = RateLimit(Limits(message_rate=0, byte_rate=1, message=5000), 0.0)
    allowance.arrived(10_000, 0.0)
    assert not allowance.overdrawn
    allowance.arrived(5_000, 0.0)
    assert allowance.overdrawn
    assert not allowance.exhausted
    allowance.arrived(1, 0.0)
    assert allowance.exhausted


def test_a_purse_for_two_messages_is_refilled_to_two_messages():
    allowance = RateLimit(Limits(message_rate=0, byte_rate=1, message=5000), 0.0)
    allowance.arrived(10_000, 0.0)
    allowance.arrived(10_000, 10_000.0)
    assert not allowance.overdrawn


@pytest.mark.parametrize("message_rate", [0, 5])
@pytest.mark.parametrize("byte_rate", [0, 1000])
def test_a_rate_of_nothing_is_no_limit_and_leaves_the_other_one(message_rate, byte_rate):
    limits = Limits(message_rate=message_rate, byte_rate=byte_rate, message=128)
    many_frames = RateLimit(limits, 0.0)
    frames(many_frames, 10_000)
    assert many_frames.overdrawn is many_frames.exhausted is bool(message_rate)
    many_bytes = RateLimit(limits, 0.0)
    for _ in range(10):
        many_bytes.arrived(10_000_000, 0.0)
    assert many_bytes.overdrawn is many_bytes.exhausted is bool(byte_rate)


def test_a_clock_that_is_set_back_takes_nothing_and_gives_nothing():
    allowance = RateLimit(PLENTY, 100.0)
    frames(allowance, 5 * BURST_SECONDS)
    allowance.arrived(1, 50.0)
    assert not allowance.overdrawn
    allowance.frame()
    assert allowance.overdrawn
    allowance.arrived(1, 51.0)
    assert not allowance.overdrawn, "time goes on from where the clock was set to"


def test_two_clients_have_a_purse_each():
    first, second = RateLimit(PLENTY, 0.0), RateLimit(PLENTY, 0.0)
    frames(first, 5 * BURST_SECONDS + 1)
    assert first.overdrawn
    assert not second.overdrawn


def test_what_is_much_work_counts_as_many_frames():
    allowance = RateLimit(Limits(message_rate=10), 0.0)
    allowance.spend(100)
    assert not allowance.overdrawn
    allowance.spend(0.5)
    assert allowance.overdrawn
    assert not allowance.exhausted
    allowance.spend(10)
    assert allowance.exhausted
