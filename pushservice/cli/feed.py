"""`quotepush feed`: publishes a simulated market in Redis, or plays a recording there.

Must not know: how prices move, how recordings are kept, or how Redis is reached. It imports what it
needs when it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pushservice.cli.daemon_options import redis_config, redis_options
from pushservice.cli.status_line import StatusLine, count_of
from pushservice.config.config import Config
from pushservice.market.instruments import Listing, listings_of

if TYPE_CHECKING:
    from twisted.internet import defer

    from pushservice.market.playback import Playback, Simulated, Source
    from pushservice.market.publishing import Publishing
    from pushservice.market.recording_format import Header

_EXAMPLES = """\b
Examples:
  quotepush feed                          200 symbols, 200 quotes a second
  quotepush feed --rate 5000 --symbols 1000
  quotepush feed --symbols AAPL,600519.SH --rate 2 --seconds 60
  quotepush feed --redis rediss://redis.example --channels 'fx.*'
  quotepush feed monday.jsonl.zst         a recording, as it was
  quotepush feed monday.jsonl.zst --speed 10 --loop
  quotepush feed monday.jsonl.zst --speed max

Quotes come from the daemon if it is told the same Redis: twistd -n quotepush --redis URL. The exit
status is 0, also after Ctrl-C, and 1 when Redis was never there or the recording can't be read."""

#: seconds for what is under way when it is to end
_PATIENCE = 2.0


class Listings(click.ParamType[tuple[Listing, ...]]):
    """How many symbols, or which."""

    name = "symbols"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Listing, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return listings_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Speed(click.ParamType[float | None]):
    """How many times as fast, or None for as fast as can be."""

    name = "speed"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | None:
        if value == "max":
            return None
        try:
            speed = float(str(value).removesuffix("x"))
        except ValueError:
            speed = 0.0
        if not 0.001 <= speed <= 1_000_000:
            self.fail(
                f"{value!r} is not max or a number from 0.001 to 1000000, such as 1 or 10",
                param,
                ctx,
            )
        return speed


@click.command(short_help="Publish a simulated market, or a recording.", epilog=_EXAMPLES)
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--rate",
    type=click.FloatRange(0.01, 1_000_000),
    default=200,
    show_default=True,
    help="Quotes a second of the simulated market.",
)
@click.option(
    "--symbols",
    type=Listings(),
    default="200",
    show_default=True,
    metavar="N|A,B,C",
    help="How many symbols the simulated market has, or which.",
)
@click.option("--seed", type=int, help="The same number gives the same market again.")
@click.option(
    "--speed",
    type=Speed(),
    default="1",
    show_default=True,
    metavar="N|max",
    help="How many times as fast as it was a recording is played; max for as fast as can be.",
)
@click.option("--loop", is_flag=True, help="Begin the recording again when it ends, until Ctrl-C.")
@click.option("--count", type=click.IntRange(1), help="End after so many quotes.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after that time.")
@click.option("--quiet", is_flag=True, help="Do not say every second how it goes.")
@redis_options(
    "channel on which a symbol is published, with * in the symbol's place; a recording's own"
    " channels unless this is typed"
)
@click.pass_context
def feed(context: click.Context, /, file: str | None, **given: Any) -> None:
    """Publish a simulated market in Redis, or play the recording FILE there.

    FILE is what `quotepush record` wrote, compressed or not; - is the standard input. Its messages
    are published on the channels they came from, with the time between them as it was. While Redis
    is away time stands still: nothing of a recording is left out.
    """
    from pushservice.cli.foreground import run
    from pushservice.market.recording_files import BadRecording

    typed = {
        name
        for name in given
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    _refuse_what_means_nothing(file, typed)
    config = redis_config(given)
    if len(config.redis) > 1:
        raise click.ClickException(
            f"--redis: {len(config.redis)} are given, and quotes are published in one"
        )
    status = StatusLine(sys.stderr, quiet=given["quiet"])
    counts = Counts()
    source: Source
    if file is None:
        source = _market(config, counts, given)
    else:
        source = _playback(file, config if "channels" in typed else None, given)

    async def main(reactor: Any, interrupted: defer.Deferred[None]) -> bool:
        return await _publish(
            reactor, interrupted, config, source, counts, status, given["seconds"]
        )

    try:
        with status.warnings():
            reached = run(main)
    except (BadRecording, ValueError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        status.line(counts.summary())
    if not reached:
        raise click.ClickException(f"Redis {config.redis[0]} was not there")


def _refuse_what_means_nothing(file: str | None, typed: set[str]) -> None:
    of_market, of_recording = {"rate", "symbols", "seed"}, {"speed", "loop"}
    wrong = typed & (of_recording if file is None else of_market)
    if wrong:
        need = "needs the FILE of a recording" if file is None else "is for the simulated market"
        raise click.UsageError(f"--{min(wrong)} {need}")
    if file == "-" and "loop" in typed:
        raise click.UsageError("--loop needs a file: the standard input can be read once")


# -- what is published -----------------------------------------------------------------------------


def _market(config: Config, counts: Counts, given: dict[str, Any]) -> Simulated:
    from pushservice.market.playback import Simulated
    from pushservice.market.simulator import Market

    market = Market(given["seed"], given["symbols"])
    return Simulated(market, _channel(config), given["rate"], counts.left_out, given["count"])


def _channel(config: Config) -> Callable[[str], str]:
    if config.demo_channel("A") is None:
        raise click.ClickException(
            f"--channels: {config.channels[0]!r} does not say where a symbol is published;"
            " use a pattern with one * and no other wildcard, such as quote.*"
        )
    return lambda symbol: config.demo_channel(symbol) or symbol


def _playback(file: str, renamed: Config | None, given: dict[str, Any]) -> Playback:
    """What plays the recording in `file`; `renamed` says on which channels, if others are meant."""
    from pushservice.market.playback import Playback
    from pushservice.market.recording_files import BadRecording, Recording

    # Once now, so that what is no recording is said at once; the first pass reads on in it.
    try:
        opened = [Recording(file)]
    except BadRecording as error:
        raise click.ClickException(str(error)) from None
    rename = str if renamed is None else _renaming(opened[0].header, _channel(renamed))

    def begin() -> Any:
        with opened.pop() if opened else Recording(file) as recording:
            yield from recording
        for warning in recording.warnings:
            click.echo(f"warning: {warning}", err=True)

    return Playback(
        begin, given["speed"], loop=given["loop"], channel_of=rename, count=given["count"]
    )


def _renaming(header: Header, channel_of: Callable[[str], str]) -> Callable[[str], str]:
    """A recorded channel's counterpart, by the symbol in it."""
    from pushservice.feed.symbol_reader import SymbolReader

    try:
        reader = SymbolReader(header.channels)
    except ValueError as error:
        raise click.ClickException(
            f"--channels: the recording does not tell symbols from channels: {error}"
        ) from None
    patterns = [pattern.encode() for pattern in header.channels]

    def rename(channel: str) -> str:
        for pattern in patterns:
            symbol = reader.read(pattern, channel.encode(), b"")
            if isinstance(symbol, str):
                return channel_of(symbol)
        return channel

    return rename


# -- how it goes -----------------------------------------------------------------------------------


class Counts:
    """What became of the quotes so far."""

    def __init__(self) -> None:
        self.published = 0
        self.errors = 0
        #: the most that any quote of the last second reached, and any at all
        self.receivers = 0
        self.most_receivers = 0
        self._began = self._said = time.monotonic()
        self._published_then = 0

    def settled(self, receivers: int | None) -> None:
        """One was published, or was not."""
        if receivers is None:
            self.errors += 1
        else:
            self.published += 1
            self.receivers = max(self.receivers, receivers)

    def left_out(self, count: int) -> None:
        """So many were not published, because Redis did not answer to those before."""
        self.errors += count

    def since_the_last_time(self, publishing: Publishing) -> str:
        """How it goes, in a line."""
        now = time.monotonic()
        rate = (self.published - self._published_then) / max(now - self._said, 1e-9)
        self._said, self._published_then = now, self.published
        receivers = count_of(self.receivers, "receiver")
        self.most_receivers = max(self.most_receivers, self.receivers)
        self.receivers = 0
        doing = f"publishing {rate:,.0f}/s to {receivers}"
        if not publishing.up:
            doing = f"waiting for Redis {publishing.link.address}"
        return f"{doing}, {self.published:,} published, {count_of(self.errors, 'error')}"

    def summary(self) -> str:
        """What came of it, in a line."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        most = max(self.most_receivers, self.receivers)
        reached = f"to {count_of(most, 'receiver')} at most" if most else "and nobody listened"
        return (
            f"{count_of(self.published, 'quote')} published in {seconds:.1f} s"
            f" ({self.published / seconds:,.0f}/s) {reached}, {count_of(self.errors, 'error')}"
        )


async def _publish(
    reactor: Any,
    interrupted: defer.Deferred[None],
    config: Config,
    source: Source,
    counts: Counts,
    status: StatusLine,
    seconds: float | None,
) -> bool:
    """Publish until the source ends, or somebody has it end; whether Redis was there at all."""
    from twisted.internet.task import LoopingCall

    from pushservice.cli.foreground import after, first_of
    from pushservice.market.publishing import Publishing

    publishing = Publishing(
        "feed", reactor, config.redis[0], source, counts.settled, config.redis_tls
    )
    saying = LoopingCall(lambda: status.say(counts.since_the_last_time(publishing)))
    saying.clock = reactor
    saying.start(1, now=False)
    publishing.start()
    try:
        with after(reactor, seconds) as over:
            await first_of(publishing.done, over, interrupted)
        publishing.finish()
        with after(reactor, _PATIENCE) as too_late:
            await first_of(publishing.done, too_late)
    finally:
        saying.stop()
        await publishing.stop()
    return publishing.reached
