"""`quotepush record`: writes a recording of what is published in Redis.

Must not know: how recordings are written, or how Redis is reached. It imports what it needs when it
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

The first line of a recording is its header, each other a message: t is when it came, in
milliseconds since the epoch, c its channel, and d the payload byte for byte (x for text that is no
JSON, b for base64 of what is no text). quotepush feed FILE plays it. The exit status is 0, also
after Ctrl-C, and 1 when Redis was never there or the file can't be written."""


@click.command(short_help="Write a recording of what is published.", epilog=_EXAMPLES)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--compress",
    type=click.Choice(["none", "gzip", "zstd"]),
    help="How; when not given, FILE's name says it: .gz, .zst, or anything else for none.",
)
@click.option("--overwrite", is_flag=True, help="Write FILE though there is one already.")
@click.option("--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after that time.")
@click.option("--quiet", is_flag=True, help="Do not say every second how it goes.")
@redis_options("Redis channel pattern to record")
def record(file: str, *, compress: str | None, overwrite: bool, **given: Any) -> None:
    """Write what is published in Redis to FILE, or for - to the standard output.

    All that was published until a second before is in the file, whatever happens. Where Redis was
    lost meanwhile, a line of the recording says so.
    """
    from pushservice.cli.foreground import run
    from pushservice.market.recorder import Recorder
    from pushservice.market.recording_files import RecordingFile, compression_of

    config = redis_config(given)
    compression = compress or compression_of(file)
    if file == "-" and compression != "none" and sys.stdout.isatty():
        raise click.UsageError("a compressed recording is nothing for a terminal: use > FILE")
    status = StatusLine(sys.stderr, quiet=given["quiet"])
    try:
        lines = RecordingFile(file, compression, overwrite=overwrite)
        recorder = Recorder(lines, config.channels, _now, given["count"])
    except FileExistsError:
        raise click.ClickException(
            f"{file} is there already: choose another name, or say --overwrite"
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
        # Whoever read the standard output has enough.
        _leave_standard_output()
        return
    except OSError as error:
        raise click.ClickException(f"can't write {file}: {error.strerror}") from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    status.line(progress.summary(file))
    if not reached:
        raise click.ClickException(f"Redis {progress.where} was not there")


def _now() -> int:
    return time.time_ns() // 1000


class _Progress:
    """How it goes, in lines."""

    def __init__(self, recorder: Recorder, config: Config) -> None:
        self.where = ", ".join(map(str, config.redis))
        self._recorder = recorder
        self._channels = ", ".join(config.channels)
        self._began = self._said = time.monotonic()
        self._messages_then = 0

    def now(self, *, up: bool) -> str:
        """What happened since the last time, and in all."""
        now = time.monotonic()
        messages = self._recorder.messages
        rate = (messages - self._messages_then) / max(now - self._said, 1e-9)
        self._said, self._messages_then = now, messages
        doing = f"recording {self._channels}: {rate:,.0f}/s"
        if not up:
            doing = f"waiting for Redis {self.where}"
        return f"{doing}, {self._in_all()}"

    def summary(self, file: str) -> str:
        """What came of it."""
        seconds = time.monotonic() - self._began
        name = "the standard output" if file == "-" else file
        size = "" if file == "-" else f" ({size_of(Path(file).stat().st_size)})"
        lost = self._recorder.losses
        losses = f"; Redis was lost {count_of(lost, 'time')}, as it says" if lost else ""
        return f"{self._in_all()} in {seconds:.1f} s, recorded in {name}{size}{losses}"

    def _in_all(self) -> str:
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
    """Record until somebody has it end; whether Redis was there at all."""
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
        # That the feed goes now is no loss.
        recorder.finish()
        saying.stop()
        await feeds.stop()
    return counters.feed_connects > 0


def _leave_standard_output() -> None:
    """Have the interpreter find something to flush to at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
