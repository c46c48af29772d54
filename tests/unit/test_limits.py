"""Limits: frozen, with the defaults of the options, and without contradictions."""

from __future__ import annotations

import dataclasses

import pytest

from pushservice.limits import Limits


@pytest.mark.parametrize("field", dataclasses.fields(Limits), ids=lambda field: field.name)
def test_limits_are_frozen(field):
    limits = Limits()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(limits, field.name, getattr(limits, field.name))
    hash(limits)


def test_a_ping_that_times_out_after_the_next_is_sent_is_refused_in_words():
    with pytest.raises(ValueError, match="is longer than") as caught:
        Limits(ping_interval=2.5, ping_timeout=3)
    words = str(caught.value)
    assert "--ping-timeout 3 is longer than --ping-interval 2.5" in words
    assert "each ping is to be answered before the next" in words


@pytest.mark.parametrize(("interval", "timeout"), [(3, 3), (3, 2.9), (0, 3), (0, 0.1)])
def test_a_ping_may_be_answered_until_the_next_and_without_pings_the_time_out_means_nothing(
    interval, timeout
):
    limits = Limits(ping_interval=interval, ping_timeout=timeout)
    assert (limits.ping_interval, limits.ping_timeout) == (interval, timeout)


def test_a_contradiction_is_found_when_limits_are_made_from_others_too():
    with pytest.raises(ValueError, match="--ping-timeout 10 is longer than --ping-interval 5"):
        dataclasses.replace(Limits(), ping_interval=5)
