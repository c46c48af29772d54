"""When a quote was published, as far as its payload says so.

Must not know: what else is in a payload, or who asks. A quote says it in the field `ts` of its
JSON: a whole number since 1970, in milliseconds, or in micro- or nanoseconds, as its digits tell.
"""

from __future__ import annotations

import re
from typing import Final

_FIELD: Final = b'"ts":'
_STAMP: Final = re.compile(rb'"ts":[ ]?([0-9]{13}(?:[0-9]{3}){0,2})(?![0-9.eE])')
_UNITS: Final = {13: 1e3, 16: 1e6, 19: 1e9}


def published_at(payload: bytes) -> float | None:
    """Seconds since the epoch by the last `ts` in `payload`; None where there is none.

    Nothing is parsed: it is for a payload of any size, and wrong only where another value of the
    payload has just this text in it.
    """
    at = payload.rfind(_FIELD)
    if at < 0:
        return None
    found = _STAMP.match(payload, at)
    if found is None:
        return None
    digits = found[1]
    return int(digits) / _UNITS[len(digits)]
