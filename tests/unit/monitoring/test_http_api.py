"""A parameter that is a number: what it may be, and what is said of everything else."""

from __future__ import annotations

import pytest

from pushservice.monitoring.http_api import IntParameter

SLOW = IntParameter("slow", 20, 1, 1000)


@pytest.mark.parametrize(
    ("args", "number"),
    [({}, 20), ({b"slow": [b"1"]}, 1), ({b"slow": [b"1000"]}, 1000), ({b"slow": [b"007"]}, 7)],
)
def test_a_number_within_its_range_is_read_and_none_is_the_default(args, number):
    assert SLOW.read(args) == number


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        ({b"slow": [b"0"]}, "slow can't be '0'"),
        ({b"slow": [b"1001"]}, "slow can't be '1001'"),
        ({b"slow": [b"-1"]}, "slow can't be '-1'"),
        ({b"slow": [b"1.5"]}, "slow can't be '1.5'"),
        ({b"slow": [b"1_0"]}, "slow can't be '1_0'"),
        ({b"slow": [b" 1"]}, "slow can't be ' 1'"),
        ({b"slow": [b""]}, "slow can't be ''"),
        ({b"slow": ["٣".encode()]}, "slow can't be '٣'"),
        ({b"slow": [b"9" * 5000]}, "slow can't be '9999"),
        ({b"slow": [b"\xff"]}, "slow can't be '\ufffd'"),
        ({b"slow": [b"1", b"1"]}, "slow is given 2 times"),
        ({b"top": [b"1"]}, "there is no 'top' here"),
        ({b"slow": [b"1"], b"x" * 5000: [b"1"]}, "there is no 'xxxx"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(args, fault):
    with pytest.raises(ValueError, match="right is slow") as caught:
        SLOW.read(args)
    text = str(caught.value)
    assert text.startswith(fault)
    assert text.endswith("; right is slow=20, a whole number from 1 to 1000")
    assert len(text) < 150
