"""`quotepush record`: writes a recording of what is published in Redis.

Must not know: how recordings are written, or how Redis is reached. It imports most modules when it
runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushservice.cli.daemon_options import redis_config, redis_options
from pushservice.cli.status_line import StatusLine, count_of, size_of
from pushservice.config.config import Config

if TYPE_CHECKING:
    from twisted.internet import defer

    from pushservice.market.recorder import Recorder
    from pushservice.market.recording_files import RecordingFile

_EXAMPLES = """\b
Examples:
  quotepush record monday.jsonl.zst                 until Ctrl-C
  quotepush record hour.jsonl.gz --seconds 3600
  quotepush record sample.jsonl --count 1000 --channels 'quote.*' --channels 'fx.*'
  quotepush record - --compress zstd > monday.jsonl.zst
  quotepush record - | head -3

The first line of a recording is its header, every other line a message: t is when it came, in
milliseconds since the epoch, c its channel, and d the payload byte for byte (x for text that is not
JSON, b for base64 of what is not UTF-8). quotepush feed FILE plays it. The exit status is 0, also
after Ctrl-C, and 1 when Redis was never reached or the file can't be written."""


@click.command(short_help="Write a recording of what is published.", epilog=_EXAMPLES)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--compress",
    type=click.Choice(["none", "gzip", "zstd"]),
    help="Compression; when not given, by FILE's name: .gz, .zst, or anything else for none.",
)
@click.option("--overwrite", is_flag=True, help="Overwrite FILE if it exists.")
@click.option("--count", type=click.IntRange(1), help="Stop after this many messages.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after this time.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
@redis_options("Redis channel pattern to record")
def record(file: str, *, compress: str | None, overwrite: bool, **given: Any) -> None:
    """Write what is published in Redis to FILE, or for - to the standard output.

    The file is flushed once a second, so that a crash loses a second at most. A line of the
    recording marks where Redis was lost.
    """
    from pushservice.cli.foreground import run
    from pushservice.market.recorder import Recorder
    from pushservice.market.recording_files import RecordingFile, compression_of

    config = redis_config(given)
    compression = compress or compression_of(file)
    if file == "-" and compression != "none" and sys.stdout.isatty():
        raise click.UsageError("a compressed recording can't be shown on a terminal: use > FILE")
    status = StatusLine(sys.stderr, quiet=given["quiet"])
    try:
        lines = RecordingFile(file, compression, overwrite=overwrite)
        recorder = Recorder(lines, config.channels, _now, given["count"])
    except FileExistsError:
        raise click.ClickException(
            f"{file} exists already: choose another name, or add --overwrite"
        ) from None
    except OSError as error:
        raise click.ClickException(f"can't write {file}: {error.strerror}") from None
    progress = _Progress(recorder, config)

    async def main(reactor: Any, interrupted: defer.Deferred[None]) -> bool:
        return await _record(
            reactor, interrupted, config, recorder, lines, progress.now, status, given["seconds"]
        )

    try:
        with status.warnings():
            reached = run(main)
            lines.close()
    except BrokenPipeError:
        # The reader of the standard output closed it.
        _detach_standard_output()
        return
    except OSError as error:
        raise click.ClickException(f"can't write {file}: {error.strerror}") from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    status.line(progress.summary(file))
    if not reached:
        raise click.ClickException(f"Redis {progress.where} could not be reached")


def _now() -> int:
    return time.time_ns() // 1000


class _Progress:
    """The progress, in lines."""

    def __init__(self, recorder: Recorder, config: Config) -> None:
        self.where = ", ".join(map(str, config.redis))
        self._recorder = recorder
        self._channels = ", ".join(config.channels)
        self._began = self._said = time.monotonic()
        self._messages_then = 0

    def now(self, *, up: bool) -> str:
        """The rate since the last call, and the totals."""
        now = time.monotonic()
        messages = self._recorder.messages
        rate = (messages - self._messages_then) / max(now - self._said, 1e-9)
        self._said, self._messages_then = now, messages
        doing = f"recording {self._channels}: {rate:,.0f}/s"
        if not up:
            doing = f"waiting for Redis {self.where}"
        return f"{doing}, {self._totals()}"

    def summary(self, file: str) -> str:
        """The totals at the end."""
        seconds = time.monotonic() - self._began
        name = "the standard output" if file == "-" else file
        size = "" if file == "-" else f" ({size_of(Path(file).stat().st_size)})"
        lost = self._recorder.losses
        losses = f"; Redis was lost {count_of(lost, 'time')}, as marked in it" if lost else ""
        return f"{self._totals()} in {seconds:.1f} s, recorded in {name}{size}{losses}"

    def _totals(self) -> str:
        messages = count_of(self._recorder.messages, "message")
        return f"{messages} with {size_of(self._recorder.size)} of payloads"


async def _record(
    reactor: Any,
    interrupted: defer.Deferred[None],
    config: Config,
    recorder: Recorder,
    lines: RecordingFile,
    now: Callable[..., str],
    status: StatusLine,
    seconds: float | None,
) -> bool:
    """Record until the count, the time or Ctrl-C ends it; whether Redis was ever reached."""
    from twisted.internet.task import LoopingCall

    from pushservice.cli.foreground import after, first_of
    from pushservice.feed.channels import ChannelNames
    from pushservice.feed.combined import CombinedFeed
    from pushservice.feed.redis_pubsub import RedisFeed
    from pushservice.metrics import Counters

    counters = Counters()
    feeds = CombinedFeed(recorder.feed_changed)
    channels = ChannelNames(config.channels, config.ignored_channels)
    for address in config.redis:
        feeds.add(
            RedisFeed(
                reactor,
                address,
                channels,
                recorder,
                counters,
                feeds.source_changed,
                config.redis_tls,
            )
        )

    def each_second() -> None:
        try:
            lines.flush()
        except OSError as error:
            recorder.fail(error)
        status.say(now(up=feeds.up))

    saying = LoopingCall(each_second)
    saying.clock = reactor
    saying.start(1, now=False)
    feeds.start()
    try:
        with after(reactor, seconds) as over:
            await first_of(recorder.done, over, interrupted)
    finally:
        # Do not record the feed's own stop as a loss.
        recorder.finish()
        saying.stop()
        await feeds.stop()
    return counters.feed_connects > 0


def _detach_standard_output() -> None:
    """Point the standard output to /dev/null, as the interpreter flushes it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
