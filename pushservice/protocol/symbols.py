"""Symbols: which strings are one, and how one is written as JSON.

Must not know: who subscribes to a symbol, or where its quotes come from.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_SYMBOL_BYTES: Final = 64
_BAD_CHARACTER = re.compile(r'[\s\x00-\x1f\x7f-\x9f*?\[\]\\"]')

_encode = msgspec.json.Encoder().encode


def symbol_fault(symbol: object) -> str | None:
    """Why `symbol` is not well-formed, as a sentence for the client; None when it is."""
    if not isinstance(symbol, str):
        return "a symbol is a string"
    try:
        size = len(symbol.encode())
    except UnicodeEncodeError:
        return "a symbol is valid UTF-8"
    if not 1 <= size <= MAX_SYMBOL_BYTES:
        return f"a symbol has 1 to {MAX_SYMBOL_BYTES} bytes, this one {size}"
    found = _BAD_CHARACTER.search(symbol)
    if found is not None:
        return (
            "a symbol has no white space, no control characters and none of"
            f' * ? [ ] \\ "; found U+{ord(found[0]):04X} at position {found.start()}'
        )
    return None


def symbol_text(symbol: str) -> bytes:
    """`symbol` as JSON text, as Codec.quote and Codec.snapshot take it."""
    return _encode(symbol)
