"""All cases of the conformance suite, by group."""

from __future__ import annotations

from typing import Final

import rfc6455_closing
import rfc6455_fragments
import rfc6455_framing
import rfc6455_load
import rfc6455_reserved
import rfc6455_sequences
import rfc6455_text
from rfc6455_records import Case

#: What each group of cases is about, by its number.
GROUPS: Final = {
    "1": "Framing",
    "2": "Pings and pongs",
    "3": "Reserved bits",
    "4": "Reserved opcodes",
    "5": "Fragments",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Limits and load",
    "10": "Automatic fragments",
}

CASES: Final[tuple[Case, ...]] = (
    *rfc6455_framing.CASES,
    *rfc6455_reserved.CASES,
    *rfc6455_fragments.CASES,
    *rfc6455_text.CASES,
    *rfc6455_sequences.CASES,
    *rfc6455_closing.CASES,
    *rfc6455_load.CASES,
    *rfc6455_fragments.AUTOMATIC,
)
