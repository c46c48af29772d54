"""More cases of group 6: sequences of octets at the bounds of UTF-8 (RFC 3629)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rfc6455_records import Case
from rfc6455_text import invalid, numbered, valid


def _hex(*words: str) -> bytes:
    return bytes.fromhex(" ".join(words))


_FIRST: Final = {
    "U+0000, the first character of one octet,": "\0",
    "U+0080, the first character of two octets,": "\u0080",
    "U+0800, the first character of three octets,": "\u0800",
    "U+10000, the first character of four octets,": "\U00010000",
}
_LAST: Final = {
    "U+007F, the last character of one octet,": "\u007f",
    "U+07FF, the last character of two octets,": "\u07ff",
    "U+FFFF, the last character of three octets,": "\uffff",
    "U+10FFFF, the last character of all,": "\U0010ffff",
}
_OTHER: Final = {
    "U+D7FF, the last before the surrogates,": "\ud7ff",
    "U+E000, the first after the surrogates,": "\ue000",
    "U+FFFD, the replacement character,": "\ufffd",
    "U+FEFF, the byte order mark, at the beginning": "\ufeffafter",
    "U+FEFF, the byte order mark, in the middle": "before\ufeffafter",
    "Specials from U+FFF9 to U+FFFD": "\ufff9\ufffa\ufffb\ufffc\ufffd",
    "Noncharacters from U+FDD0 to U+FDEF": "".join(map(chr, range(0xFDD0, 0xFDF0))),
    "Combining characters one upon the other": "e\u0301\u0323\u0330",
    "Text that is not in Unicode's normal form": "\u212b\u00c5A\u030a",
}
_NONCHARACTERS: Final = {
    "U+FFFE and U+FFFF, which are no characters,": "\ufffe\uffff",
    "U+1FFFE and U+1FFFF, which are no characters,": "\U0001fffe\U0001ffff",
    "The last two of each other plane, which are no characters,": "".join(
        chr(plane << 16 | last) for plane in range(2, 17) for last in (0xFFFE, 0xFFFF)
    ),
}
_TOO_LARGE: Final = {
    "U+110000, which is no character,": _hex("f4 90 80 80"),
    "U+1FFFFF, the last of four octets,": _hex("f7 bf bf bf"),
    "The first sequence of five octets": _hex("f8 88 80 80 80"),
    "The last sequence of five octets": _hex("fb bf bf bf bf"),
    "The first sequence of six octets": _hex("fc 84 80 80 80 80"),
    "The last sequence of six octets": _hex("fd bf bf bf bf bf"),
}
_CONTINUATIONS: Final = {
    "The first continuation octet alone": _hex("80"),
    "The last continuation octet alone": _hex("bf"),
    "A continuation octet after a whole character": "\u00e9".encode() + _hex("80"),
} | {
    f"A row of {size} continuation octets": bytes(0x80 | at for at in range(size))
    for size in (2, 3, 4, 5, 6, 7, 64)
}
_LONELY: Final = {
    f"First octets from {first:#x} to {last:#x}, each before a space,": b"".join(
        bytes([octet, 0x20]) for octet in range(first, last + 1)
    )
    for first, last in ((0xC2, 0xDF), (0xE0, 0xEF), (0xF0, 0xF4), (0xF5, 0xFB), (0xFC, 0xFD))
}
_UNFINISHED: Final = {
    "A sequence of two octets": _hex("c3"),
    "A sequence of three octets after its first": _hex("e4"),
    "A sequence of three octets after its second": _hex("e4 b8"),
    "A sequence of four octets after its first": _hex("f0"),
    "A sequence of four octets after its second": _hex("f0 9f"),
    "A sequence of four octets after its third": _hex("f0 9f 98"),
}
_IMPOSSIBLE: Final = {
    "The octet 0xc0": _hex("c0"),
    "The octet 0xc1": _hex("c1"),
    "The octet 0xf5": _hex("f5"),
    "The octet 0xfe": _hex("fe"),
    "The octet 0xff": _hex("ff"),
    "The byte order mark of UTF-16": _hex("fe ff 00 41"),
    "The octets 0xfe and 0xff, twice each,": _hex("fe fe ff ff"),
}
_OVERLONG: Final = {
    f"{what} in {len(data)} octets": data
    for what, forms in {
        "A slash": ("c0 af", "e0 80 af", "f0 80 80 af", "f8 80 80 80 af", "fc 80 80 80 80 af"),
        "U+0000": ("c0 80", "e0 80 80", "f0 80 80 80", "f8 80 80 80 80", "fc 80 80 80 80 80"),
        "The last character that fits into fewer octets,": (
            "c1 bf",
            "e0 9f bf",
            "f0 8f bf bf",
            "f8 87 bf bf bf",
            "fc 83 bf bf bf bf",
        ),
    }.items()
    for data in map(_hex, forms)
}
_SURROGATES: Final = {
    f"The surrogate U+{code:X}": chr(code).encode("utf-8", "surrogatepass")
    for code in (0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF)
}
_PAIRS: Final = {
    f"The pair of surrogates U+{high:X} and U+{low:X}": (chr(high) + chr(low)).encode(
        "utf-8", "surrogatepass"
    )
    for high in (0xD800, 0xDB7F, 0xDB80, 0xDBFF)
    for low in (0xDC00, 0xDFFF)
}


def _sequences() -> Iterator[Case]:
    kinds = [
        *((valid, cases) for cases in (_FIRST, _LAST, _OTHER, _NONCHARACTERS)),
        *((invalid, cases) for cases in (_TOO_LARGE, _CONTINUATIONS, _LONELY, _UNFINISHED)),
        *((invalid, cases) for cases in (_IMPOSSIBLE, _OVERLONG, _SURROGATES, _PAIRS)),
    ]
    for group, (make, cases) in enumerate(kinds, 7):
        yield from numbered(f"6.{group}", make, cases)


CASES: Final = tuple(_sequences())
