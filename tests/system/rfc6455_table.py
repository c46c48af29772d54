"""The list of all cases as docs/conformance.rst shows it; run as a program, it puts it there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rfc6455_cases import CASES, GROUPS

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "conformance.rst"
#: Every case is played over both.
TRANSPORTS: Final = ("plain", "tls")
#: What stands after this in the document is made here.
MARK: Final = ".. From here on made by tests/system/rfc6455_table.py.\n"


def rendered() -> str:
    """The cases by group, as reStructuredText."""
    return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    variants = {case.id: len(case.ways) * len(TRANSPORTS) for case in CASES}
    yield ""
    yield f"There are {len(CASES)} cases in {sum(variants.values())} variants."
    for number, name in GROUPS.items():
        title = f"{number}. {name}"
        yield from ("", title, "-" * len(title), "")
        yield from (".. csv-table::", "   :header-rows: 1", "   :widths: 10 65 15 10", "")
        yield '   "case","what must happen","RFC 6455","variants"'
        for case in CASES:
            if case.id.partition(".")[0] == number:
                yield f'   "{case.id}","{case.title}","{case.section}","{variants[case.id]}"'


def documented() -> str:
    """What the document has in place of it."""
    return DOCUMENT.read_text("utf-8").partition(MARK)[2]


def main() -> None:
    """Make the document's list anew."""
    intro = DOCUMENT.read_text("utf-8").partition(MARK)[0]
    DOCUMENT.write_text(intro + MARK + rendered(), "utf-8")


if __name__ == "__main__":
    main()
