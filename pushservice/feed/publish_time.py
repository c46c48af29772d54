"""When a quote was published, read from the field `ts` of its payload.

Must not know: what else is in a payload, or who asks. `ts` is a whole number since 1970, in
milli-, micro- or nanoseconds: the number of its digits tells which.

Own code: one search in the bytes costs the same for payloads of any size; a JSON parser reads all.
"""

from __future__ import annotations

import re
from typing import Final

_FIELD: Final = b'"ts":'
_TIMESTAMP: Final = re.compile(rb'"ts":[ ]?([0-9]{13}(?:[0-9]{3}){0,2})(?![0-9.eE])')
_UNITS: Final = {13: 1e3, 16: 1e6, 19: 1e9}


def published_at(payload: bytes) -> float | None:
    """Seconds since the epoch by the last `ts` in `payload`; None if there is none.

    The JSON is not parsed: the result is wrong only if a string in it contains such a field.
    """
    at = payload.rfind(_FIELD)
    if at < 0:
        return None
    found = _TIMESTAMP.match(payload, at)
    if found is None:
        return None
    digits = found[1]
    return int(digits) / _UNITS[len(digits)]
