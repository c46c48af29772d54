"""`quotepush feed`: what may be typed, and what is said when that makes no sense."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pushservice.cli.feed import Counts, feed
from pushservice.market.recording_format import Header, Message, header_line, message_line

MESSAGES = [
    Message(1_000_000 + n, channel, b"%d" % n)
    for n, channel in enumerate(["quote.AAPL", "quote.MSFT", "other"])
]


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "r.jsonl"
    lines = [header_line(Header(1_000_000, ("quote.*",))), *map(message_line, MESSAGES)]
    path.write_bytes(b"".join(lines))
    return str(path)


def run(*words: str, environment: dict[str, str] | None = None):
    return CliRunner().invoke(feed, words, env=environment)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "0"], "--rate"),
        (["--symbols", "0"], "1 to 100000"),
        (["--symbols", "A B"], "no white space"),
        (["--count", "0"], "--count"),
        (["--seconds", "0"], "--seconds"),
        (["--speed", "2"], "--speed needs the FILE of a recording"),
        (["--loop"], "--loop needs the FILE of a recording"),
        (["FILE", "--rate", "5"], "--rate is for the simulated market"),
        (["FILE", "--seed", "5", "--symbols", "5"], "--seed is for the simulated market"),
        (["FILE", "--speed", "fast"], "'fast' is not max or a number"),
        (["FILE", "--speed", "0"], "'0' is not max or a number"),
        (["FILE", "--speed", "nan"], "'nan' is not max or a number"),
        (["-", "--loop"], "--loop needs a file"),
    ],
)
def test_a_wrong_use_is_an_error_with_status_2(words, said, recording):
    done = run(*[recording if word == "FILE" else word for word in words])
    assert said in done.stderr
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--redis", "embedded"], "is the daemon's own Redis"),
        (["--redis", "http://host"], "--redis: 'http://host' is not understood"),
        (["--redis", "redis://a", "--redis", "redis://b"], "2 are given"),
        (["--redis-ca", "ca.pem"], "use rediss://"),
        (["--channels", "a.?.*"], "does not say where a symbol is published"),
        (["nothing.jsonl"], "can't read nothing.jsonl: No such file or directory"),
        (["--config", "nothing.toml"], "--config: can't read"),
    ],
)
def test_a_failure_is_an_error_with_status_1(words, said):
    done = run(*words)
    assert said in done.stderr
    assert done.exit_code == 1


def test_no_password_is_shown():
    done = run("--redis", "redis://:geheim@host/1", environment={"QUOTEPUSH_REGISTRY": "x:geheim"})
    assert done.exit_code == 1
    assert "geheim" not in done.output


def test_channels_are_renamed_by_the_symbol_where_they_are_typed(recording):
    from pushservice.cli.feed import _playback_source
    from pushservice.config.config import Config

    given = {"speed": None, "loop": False, "count": None}
    renamed = _playback_source(recording, Config(channels=("my.*.x",)), given)
    assert [channel for channel, _ in renamed.due(0, 10)] == [b"my.AAPL.x", b"my.MSFT.x", b"other"]
    as_they_were = _playback_source(recording, None, given)
    assert [channel for channel, _ in as_they_were.due(0, 10)] == [
        message.channel.encode() for message in MESSAGES
    ]


def test_counts_sum_up():
    counts = Counts()
    for receivers in (0, 3, 1, None):
        counts.settled(receivers)
    counts.dropped(5)
    assert counts.summary().startswith("3 quotes published in ")
    assert counts.summary().endswith("to 3 receivers at most, 6 errors")
    assert Counts().summary().endswith("and nobody listened, 0 errors")


def test_the_help_has_examples_line_by_line():
    text = run("--help").stdout
    assert "\n    quotepush feed monday.jsonl.zst --speed 10 --loop\n" in text
    assert "redis://localhost:6379" in text
