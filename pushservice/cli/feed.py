"""`quotepush feed`: publishes a simulated market in Redis, or plays a recording there.

Must not know: how prices move, how recordings are stored, or how Redis is reached. It imports most
modules when it runs.
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
from pushservice.market.instruments import Listing, parse_listings

if TYPE_CHECKING:
    from twisted.internet import defer

    from pushservice.market.playback import PlaybackSource, SimulatedSource, Source
    from pushservice.market.publisher import Publisher
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

A daemon with the same Redis sends the quotes to its clients: twistd -n quotepush --redis URL. The
exit status is 0, also after Ctrl-C, and 1 when Redis was never reached or the recording can't be
read."""

#: seconds to wait at the end for Redis to answer the last publishes
_TIMEOUT_S = 2.0


class SymbolsParam(click.ParamType[tuple[Listing, ...]]):
    """The value of --symbols: how many symbols, or which."""

    name = "symbols"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Listing, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_listings(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SpeedParam(click.ParamType[float | None]):
    """The value of --speed: a factor, or None for as fast as possible."""

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
    type=SymbolsParam(),
    default="200",
    show_default=True,
    metavar="N|A,B,C",
    help="Symbols of the simulated market: how many, or which.",
)
@click.option(
    "--seed", type=int, help="Seed of the simulated market; the same seed gives the same market."
)
@click.option(
    "--speed",
    type=SpeedParam(),
    default="1",
    show_default=True,
    metavar="N|max",
    help="Speed of a recording, as a factor; max for as fast as possible.",
)
@click.option("--loop", is_flag=True, help="Repeat the recording until Ctrl-C.")
@click.option("--count", type=click.IntRange(1), help="Stop after this many quotes.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after this time.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
@redis_options(
    "channel on which a symbol is published, with * in place of the symbol; when not typed, a"
    " recording keeps its own channels"
)
@click.pass_context
def feed(context: click.Context, /, file: str | None, **given: Any) -> None:
    """Publish a simulated market in Redis, or play the recording FILE there.

    FILE is what `quotepush record` wrote, compressed or not; - is the standard input. Its messages
    are published on the channels they came from, with the original time between them. Playback
    pauses while Redis is away, so that no message of a recording is lost.
    """
    from pushservice.cli.foreground import run
    from pushservice.market.recording_files import BadRecording

    typed = {
        name
        for name in given
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    _check_applicable(file, typed)
    config = redis_config(given)
    if len(config.redis) > 1:
        raise click.ClickException(
            f"--redis: {len(config.redis)} are given, but quotes are published in one only"
        )
    status = StatusLine(sys.stderr, quiet=given["quiet"])
    counts = Counts()
    source: Source
    if file is None:
        source = _simulated_source(config, counts, given)
    else:
        source = _playback_source(file, config if "channels" in typed else None, given)

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
        raise click.ClickException(f"Redis {config.redis[0]} could not be reached")


def _check_applicable(file: str | None, typed: set[str]) -> None:
    of_market, of_recording = {"rate", "symbols", "seed"}, {"speed", "loop"}
    wrong = typed & (of_recording if file is None else of_market)
    if wrong:
        need = (
            "needs the FILE of a recording" if file is None else "is for the simulated market only"
        )
        raise click.UsageError(f"--{min(wrong)} {need}")
    if file == "-" and "loop" in typed:
        raise click.UsageError("--loop needs a file: the standard input can be read only once")


# -- sources -----------------------------------------------------------------------------


def _simulated_source(config: Config, counts: Counts, given: dict[str, Any]) -> SimulatedSource:
    from pushservice.market.playback import SimulatedSource
    from pushservice.market.simulator import Market

    market = Market(given["seed"], given["symbols"])
    return SimulatedSource(market, _channel(config), given["rate"], counts.dropped, given["count"])


def _channel(config: Config) -> Callable[[str], str]:
    if config.demo_channel("A") is None:
        raise click.ClickException(
            f"--channels: {config.channels[0]!r} does not say where a symbol is published;"
            " use a pattern with one * and no other wildcard, such as quote.*"
        )
    return lambda symbol: config.demo_channel(symbol) or symbol


def _playback_source(file: str, renamed: Config | None, given: dict[str, Any]) -> PlaybackSource:
    """The source that plays the recording in `file`, on the channels of `renamed` if given."""
    from pushservice.market.playback import PlaybackSource
    from pushservice.market.recording_files import BadRecording, Recording

    # Open it now, so that an error is reported at once; the first pass reads on from here.
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

    return PlaybackSource(
        begin, given["speed"], loop=given["loop"], channel_of=rename, count=given["count"]
    )


def _renaming(header: Header, channel_of: Callable[[str], str]) -> Callable[[str], str]:
    """A function from a recorded channel to the channel of the same symbol by `channel_of`."""
    from pushservice.feed.symbol_reader import SymbolReader

    try:
        reader = SymbolReader(header.channels)
    except ValueError as error:
        raise click.ClickException(
            f"--channels: the symbols can't be read from the recording's channels: {error}"
        ) from None
    patterns = [pattern.encode() for pattern in header.channels]

    def rename(channel: str) -> str:
        for pattern in patterns:
            symbol = reader.read(pattern, channel.encode(), b"")
            if isinstance(symbol, str):
                return channel_of(symbol)
        return channel

    return rename


# -- progress -----------------------------------------------------------------------------------


class Counts:
    """Counts of published and failed quotes."""

    def __init__(self) -> None:
        self.published = 0
        self.errors = 0
        #: most receivers of one quote, in the last second and ever
        self.receivers = 0
        self.most_receivers = 0
        self._began = self._said = time.monotonic()
        self._published_then = 0

    def settled(self, receivers: int | None) -> None:
        """A quote was published to so many receivers; None where that failed."""
        if receivers is None:
            self.errors += 1
        else:
            self.published += 1
            self.receivers = max(self.receivers, receivers)

    def dropped(self, count: int) -> None:
        """So many quotes were not published, because Redis had not answered earlier ones."""
        self.errors += count

    def progress(self, publishing: Publisher) -> str:
        """The progress since the last call, in a line."""
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
        """The totals, in a line."""
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
    """Publish until the source, the time or Ctrl-C ends it; whether Redis was ever reached."""
    from twisted.internet.task import LoopingCall

    from pushservice.cli.foreground import after, first_of
    from pushservice.market.publisher import Publisher

    publishing = Publisher(
        "feed", reactor, config.redis[0], source, counts.settled, config.redis_tls
    )
    saying = LoopingCall(lambda: status.say(counts.progress(publishing)))
    saying.clock = reactor
    saying.start(1, now=False)
    publishing.start()
    try:
        with after(reactor, seconds) as over:
            await first_of(publishing.done, over, interrupted)
        publishing.finish()
        with after(reactor, _TIMEOUT_S) as too_late:
            await first_of(publishing.done, too_late)
    finally:
        saying.stop()
        await publishing.stop()
    return publishing.reached
