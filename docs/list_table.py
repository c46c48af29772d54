# ruff: noqa: INP001 - beside the documents, in no package
"""Tables in reStructuredText for the programs beside this one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence


def list_table(
    title: str, widths: Sequence[int], titles: list[str], rows: Iterable[list[str]]
) -> Iterator[str]:
    """The lines of a table of four columns; `widths` are parts of a hundred."""
    yield f".. list-table:: {title}"
    yield "   :header-rows: 1"
    yield f"   :widths: {' '.join(map(str, widths))}"
    yield ""
    for cells in (titles, *rows):
        for begin, cell in zip("*   ", cells, strict=True):
            yield from textwrap.wrap(
                cell,
                100,
                initial_indent=f"   {begin} - ",
                subsequent_indent="       ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    yield ""
