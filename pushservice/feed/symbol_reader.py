"""Reads a Redis message's symbol: from the pattern's `*`, by a regular expression, or from a field.

Must not know: connections, Redis clients, or who is subscribed.

Own code: the globs are Redis's own; fnmatch has no escapes, and other rules for classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pushservice.protocol.symbols import symbol_fault

#: Channels whose symbol is cached. When full, the cache is cleared, so that a publisher that
#: invents channels costs time and not memory.
MAX_CACHED: Final = 100_000

#: The channel of revocations: its messages are no quotes, whichever patterns match it.
REVOKE_CHANNEL: Final = "quotepush:revoke"


class Ignored:
    """The type of a message that is passed over."""


#: A message that an earlier pattern matches too: Redis sends it once for each pattern.
IGNORED: Final = Ignored()


def glob_regex(pattern: str) -> re.Pattern[bytes]:
    r"""Redis's glob style (`*`, `?`, `[a-z]`, `[^a]`, `\` escapes) as a regex; `*`s are groups.

    Matches byte by byte, as Redis's stringmatchlen does. Raises ValueError for a `[` without its
    `]`, which Redis accepts, but with a meaning that nobody intends.
    """
    glob = pattern.encode()
    out: list[bytes] = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        at += 1
        if char == b"*":
            out.append(b"(.*)")
        elif char == b"?":
            out.append(b".")
        elif char == b"[":
            text, at = _bracket(glob, at)
            out.append(text)
        else:
            if char == b"\\" and at < len(glob):
                char = glob[at : at + 1]
                at += 1
            out.append(re.escape(char))
    return re.compile(b"".join(out), re.DOTALL)


def _bracket(glob: bytes, at: int) -> tuple[bytes, int]:
    """The class that begins after a `[` at `at`, as regex text, and where it ends."""
    negated = glob[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(glob) and glob[at : at + 1] != b"]":
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            members.add(glob[at + 1])
            at += 2
        elif glob[at + 1 : at + 2] == b"-" and at + 2 < len(glob):
            # Redis compares signed characters: 0x80 and up come before the others.
            low, high = sorted((glob[at] ^ 0x80, glob[at + 2] ^ 0x80))
            members.update(member ^ 0x80 for member in range(low, high + 1))
            at += 3
        else:
            members.add(glob[at])
            at += 1
    if at >= len(glob):
        raise ValueError(f"a [ in {glob.decode()!r} has no ]; write \\[ for the character itself")
    if negated:
        members = set(range(256)) - members
    # An empty class matches nothing, in Redis too.
    text = b"[%b]" % b"".join(b"\\x%02x" % member for member in sorted(members))
    return (text if members else b"(?!)"), at + 1


def single_star(pattern: str) -> tuple[str, str] | None:
    """The text before and after a pattern's `*` if that is its only wildcard, else None."""
    if pattern.count("*") != 1 or set(pattern) & set("?[]\\"):
        return None
    before, _, after = pattern.partition("*")
    return before, after


class SymbolReader:
    """Reads the symbol of each message; if it follows from the channel, once per channel.

    The constructor raises ValueError when `patterns`, `regex` and `field` do not determine it.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        regex: str | None = None,
        field: str | None = None,
        ignored: Sequence[str] = (),
    ) -> None:
        """`ignored` are channels whose messages are no quotes, whichever patterns match them."""
        if not patterns:
            raise ValueError("at least one channel pattern is needed, such as quote.*")
        if regex is not None and field is not None:
            raise ValueError("--symbol-regex and --symbol-field exclude each other")
        # Redis keeps one subscription of a pattern that is given twice.
        patterns = list(dict.fromkeys(patterns))
        self._globs = [glob_regex(pattern) for pattern in patterns]
        self._order = {pattern.encode(): at for at, pattern in enumerate(patterns)}
        self._ignored = frozenset(channel.encode() for channel in ignored)
        self._regex = self._compiled(regex)
        self._decode_field = None if field is None else _field_decoder(field)
        if regex is None and field is None:
            for pattern, glob in zip(patterns, self._globs, strict=True):
                if glob.groups != 1:
                    raise ValueError(
                        f"{pattern!r} has {glob.groups} *, and the symbol is what a single *"
                        " matched: use one *, or say --symbol-regex or --symbol-field"
                    )
        self._cache: dict[tuple[bytes, bytes], str | Ignored | None] = {}

    @staticmethod
    def _compiled(regex: str | None) -> re.Pattern[str] | None:
        if regex is None:
            return None
        try:
            compiled = re.compile(regex)
        except re.error as error:
            raise ValueError(f"{regex!r} is no regular expression: {error}") from None
        if "symbol" not in compiled.groupindex:
            raise ValueError(f"{regex!r} has no group named symbol, such as (?P<symbol>.+)")
        return compiled

    def read(self, pattern: bytes, channel: bytes, payload: bytes) -> str | Ignored | None:
        """The symbol; IGNORED for a duplicate; None if there is no well-formed symbol."""
        key = (pattern, channel)
        try:
            symbol = self._cache[key]
        except KeyError:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            symbol = self._cache[key] = self._of_channel(pattern, channel)
        if self._decode_field is None or symbol is IGNORED:
            return symbol
        try:
            symbol = self._decode_field(payload).symbol
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return symbol if symbol_fault(symbol) is None else None

    def _of_channel(self, pattern: bytes, channel: bytes) -> str | Ignored | None:
        at = self._order.get(pattern)
        if at is None:
            return None
        if channel in self._ignored:
            return IGNORED
        for earlier in self._globs[:at]:
            if earlier.fullmatch(channel):
                return IGNORED
        if self._decode_field is not None:
            return None
        try:
            if self._regex is not None:
                found = self._regex.search(channel.decode())
                symbol = found["symbol"] if found else None
            else:
                match = self._globs[at].fullmatch(channel)
                symbol = match[1].decode() if match else None
        except UnicodeDecodeError:
            return None
        return symbol if symbol_fault(symbol) is None else None


def _field_decoder(field: str) -> Any:
    """A decoder that reads one string field of a JSON object and skips the rest."""
    if not field:
        raise ValueError("--symbol-field needs the name of a field, such as symbol")
    struct = msgspec.defstruct("Payload", [("symbol", str)], rename={"symbol": field})
    return msgspec.json.Decoder(struct).decode
