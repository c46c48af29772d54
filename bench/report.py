"""Medians over the rounds, the tables, and the chart."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from flooded import KINDS
from processes import TARGETS
from shapes import SHAPES

OURS = next(each.name for each in TARGETS if each.ours)
_TITLES = {each.name: each.title for each in TARGETS}
_SHAPES = {shape.name: shape for shape in SHAPES}
#: by loop: the figure in which servers are compared, and whether more of it is better
_COMPARED = {
    "closed": ("per_cpu_second", True),
    "open": ("us_per_delivery", False),
    "idle": ("first_us_per_connection", False),
    "stalled": ("p99_ratio", False),
    "paced": ("cpu_ratio", False),
    "flood": ("worst_p99_ratio", False),
}
#: by loop: the other figures in the table, as (name, heading, divisor, format)
_COLUMNS = {
    "closed": (
        ("per_cpu_second", "M/CPU s", 1e6, ".2f"),
        ("us_per_delivery", "us each", 1, ".2f"),
        ("wall_rate", "M/s", 1e6, ".2f"),
        ("server_busy", "server", 1, ".0%"),
        ("load_busy", "load", 1, ".0%"),
        ("others_busy", "others", 1, ".0%"),
        ("quotes_per_frame", "per frame", 1, ".1f"),
    ),
    "open": (
        ("us_per_delivery", "us each", 1, ".2f"),
        ("server_busy", "server", 1, ".0%"),
        ("load_busy", "load", 1, ".0%"),
        ("others_busy", "others", 1, ".0%"),
        ("p50_us", "p50 ms", 1e3, ".2f"),
        ("p99_us", "p99 ms", 1e3, ".2f"),
        ("p999_us", "p99.9 ms", 1e3, ".2f"),
        ("max_us", "max ms", 1e3, ".1f"),
    ),
    "idle": (
        ("first_us_per_connection", "us each", 1, ",.0f"),
        ("first_connections_per_second", "per second", 1, ",.0f"),
        ("resumed_us_per_connection", "us resumed", 1, ",.0f"),
        ("resumed_share", "resumed", 1, ".0%"),
        ("bytes_per_connection", "KiB each", 1024, ".1f"),
    ),
    # "alone": without the clients that do not read; "later": once their buffers are full
    "stalled": (
        ("grown_kib", "grown KiB", 1, ",.0f"),
        ("grown_later_kib", "later KiB", 1, ",.0f"),
        ("server_busy", "server", 1, ".0%"),
        ("reference_busy", "alone", 1, ".0%"),
        ("p50_us", "p50 ms", 1e3, ".2f"),
        ("reference_p50_us", "alone", 1e3, ".2f"),
        ("p99_us", "p99 ms", 1e3, ".2f"),
        ("reference_p99_us", "alone", 1e3, ".2f"),
        ("p999_us", "p99.9 ms", 1e3, ".2f"),
        ("reference_p999_us", "alone", 1e3, ".2f"),
        ("p99_ratio", "ratio", 1, ".2f"),
        ("others_busy", "others", 1, ".0%"),
        ("queued_kib", "kernel KiB", 1, ",.0f"),
        ("caught_up", "merged", 1, ".0f"),
        ("frames_to_current", "in frames", 1, ".0f"),
        ("current_seconds", "in s", 1, ".2f"),
    ),
    "paced": (
        ("server_busy", "server", 1, ".0%"),
        ("unpaced_busy", "unpaced", 1, ".0%"),
        ("cpu_ratio", "ratio", 1, ".2f"),
        ("updates_per_second", "each/s", 1, ".2f"),
        ("p50_us", "p50 ms", 1e3, ".1f"),
        ("p99_us", "p99 ms", 1e3, ".1f"),
        ("unpaced_p50_us", "unpaced", 1e3, ".2f"),
        ("unpaced_p99_us", "unpaced", 1e3, ".2f"),
        ("settled_ms", "settled ms", 1, ".0f"),
        ("others_busy", "others", 1, ".0%"),
    ),
    "flood": (
        ("quiet_p99_us", "quiet p99 ms", 1e3, ".2f"),
        ("quiet_server_busy", "server", 1, ".0%"),
        *(
            column
            for kind in KINDS
            for column in (
                (f"{kind}_per_second", f"{kind}/s", 1, ",.0f"),
                (f"{kind}_p99_us", "p99 ms", 1e3, ".2f"),
                (f"{kind}_server_busy", "server", 1, ".0%"),
            )
        ),
        ("worst_p99_ratio", "worst", 1, ".2f"),
    ),
}
#: of the shape with floods: a row for each kind, its figures' names after the kind's
_FLOOD_COLUMNS = (
    ("per_second", "sent/s", 1, ",.0f"),
    ("connects", "connects", 1, ",.0f"),
    ("closed", "closed", 1, ",.0f"),
    ("refused", "refused", 1, ",.0f"),
    ("p50_us", "p50 ms", 1e3, ".2f"),
    ("p99_us", "p99 ms", 1e3, ".2f"),
    ("p999_us", "p99.9 ms", 1e3, ".2f"),
    ("max_us", "max ms", 1e3, ".1f"),
    ("p99_ratio", "p99 ratio", 1, ".2f"),
    ("server_busy", "server", 1, ".0%"),
    ("more_busy", "more", 1, "+.0%"),
    ("load_busy", "load", 1, ".0%"),
    ("others_busy", "others", 1, ".0%"),
)

Figures = dict[str, Any]


def medians(results: Iterable[Figures]) -> list[Figures]:
    """Median, minimum and maximum of each figure over the rounds, and the ratio to quotepush.

    `ratio` is how many times better quotepush is: more deliveries, or fewer microseconds.
    """

    def key_of(result: Figures) -> tuple[str, str, str]:
        return result["security"], result["shape"], result["server"]

    found: list[Figures] = []
    for (security, shape, server), group in groupby(sorted(results, key=key_of), key_of):
        rounds = list(group)
        summary: Figures = {"security": security, "shape": shape, "server": server}
        faults = [each["fault"] for each in rounds if "fault" in each]
        if faults:
            summary["faults"] = faults
        sound = [each for each in rounds if "fault" not in each]
        summary["rounds"] = len(sound)
        for name, value in (sound[0] if sound else {}).items():
            if name not in {"round", "security", "shape", "server"}:
                values = [each[name] for each in sound]
                if isinstance(value, str):
                    summary[name] = value
                elif isinstance(value, list):
                    continue
                else:
                    summary[name] = {
                        "median": median(values),
                        "min": min(values),
                        "max": max(values),
                    }
        found.append(summary)
    for summary in found:
        ours = _find(found, summary["security"], summary["shape"], OURS)
        figure, more_is_better = _COMPARED[_SHAPES[summary["shape"]].loop]
        if ours is not None and figure in ours and figure in summary:
            ratio = ours[figure]["median"] / summary[figure]["median"]
            summary["ratio"] = round(ratio if more_is_better else 1 / ratio, 3)
    return found


def _find(summaries: list[Figures], security: str, shape: str, server: str) -> Figures | None:
    for summary in summaries:
        if (summary["security"], summary["shape"], summary["server"]) == (security, shape, server):
            return summary
    return None


def line(where: Figures, figures: Figures) -> str:
    """One measurement as one line of progress."""
    place = f"{where['round']} {where['security']:5} {where['server']:13} {where['shape']:16}"
    if "fault" in figures:
        return f"{place} FAILED: {figures['fault']}"
    shown = [
        f"{figures[name] / divisor:{form}} {heading}"
        for name, heading, divisor, form in _COLUMNS[_SHAPES[where["shape"]].loop]
        if name in figures
    ]
    return f"{place} {', '.join(shown)}"


def tables(document: Figures) -> str:
    """A table in reStructuredText for each shape, plain and TLS."""
    # "server" and "others" are shares of the server's core, "load" of the other one.
    summaries = document["medians"]
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    head = (
        f"Medians of {document['rounds']} rounds, windows of {document['window_seconds']:g} s,"
        f" {document['in_flight']:,} deliveries in flight; {machine['cpu']}, one core for the"
        f" server;\nLinux {machine['kernel']}, Python {machine['python']}, {packages}.\n"
    )
    parts = [head]
    for shape in SHAPES:
        for security in ("plain", "tls"):
            rows = [
                summary
                for target in TARGETS
                if (summary := _find(summaries, security, shape.name, target.name)) is not None
            ]
            if rows:
                title = f"{shape.title}, {'TLS' if security == 'tls' else 'plain'}"
                table = _flood_table if shape.loop == "flood" and rows[0]["rounds"] else _table
                parts.append(f"{title}\n\n{table(rows, shape.loop)}\n")
    return "\n".join(parts)


def _table(rows: list[Figures], loop: str) -> str:
    compared, _ = _COMPARED[loop]
    columns = [column for column in _COLUMNS[loop] if any(column[0] in row for row in rows)]
    head = ["server", *(heading for _, heading, _, _ in columns), "min to max", "ours is"]
    body = []
    for row in rows:
        cells = [_TITLES[row["server"]]]
        if not row["rounds"]:
            body.append([*cells, "failed", *[""] * len(columns), ""])
            continue
        for name, _, divisor, form in columns:
            cells.append(f"{row[name]['median'] / divisor:{form}}" if name in row else "")
        _, _, divisor, form = next(column for column in columns if column[0] == compared)
        least, most = row[compared]["min"] / divisor, row[compared]["max"] / divisor
        cells.append(f"{least:{form}} to {most:{form}}")
        cells.append(f"{row['ratio']:.2f} x" if "ratio" in row else "")
        body.append(cells)
    return _drawn(head, body)


def _flood_table(rows: list[Figures], _: str) -> str:
    body = []
    for kind in ("quiet", *KINDS):
        cells = [kind]
        for name, _heading, divisor, form in _FLOOD_COLUMNS:
            figure = rows[0].get(f"{kind}_{name}")
            cells.append("" if figure is None else f"{figure['median'] / divisor:{form}}")
        body.append(cells)
    return _drawn(["flood", *(heading for _, heading, _, _ in _FLOOD_COLUMNS)], body)


def _drawn(head: list[str], body: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [rule, _row(head, widths), rule, *(_row(cells, widths) for cells in body), rule]
    return "\n".join(lines)


def _row(cells: list[str], widths: list[int]) -> str:
    first, *rest = (
        cell.ljust(width) if at == 0 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def chart(document: Figures, path: Path) -> None:
    """Bars of the compared figure by shape and server: plain in a row above TLS."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    summaries = [summary for summary in document["medians"] if summary["rounds"]]
    shapes = [shape for shape in SHAPES if any(s["shape"] == shape.name for s in summaries)]
    kinds = [kind for kind in ("plain", "tls") if any(s["security"] == kind for s in summaries)]
    if not summaries:
        return
    figure, grid = pyplot.subplots(
        len(kinds),
        len(shapes),
        figsize=(3.4 * len(shapes) + 1.5, 2.6 * len(kinds) + 0.6),
        squeeze=False,
        sharey=True,
    )
    servers = [each.name for each in TARGETS if any(s["server"] == each.name for s in summaries)]
    for row, kind in zip(grid, kinds, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            _bars(axes, summaries, kind, shape.name, servers)
            axes.set_title(f"{shape.name}, {'TLS' if kind == 'tls' else 'plain'}", fontsize=10)
    for axes, shape in zip(grid[-1], shapes, strict=True):
        axes.set_xlabel(
            {
                "closed": "million delivered per CPU second\n(more is better)",
                "open": "CPU us per delivery\n(less is better)",
                "idle": "CPU us per connection\n(less is better)",
                "stalled": "p99 with bad clients / without\n(less is better)",
                "paced": "CPU paced / unpaced\n(less is better)",
                "flood": "worst p99 flooded / quiet\n(less is better)",
            }[shape.loop],
            fontsize=9,
        )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _bars(axes: Any, summaries: list[Figures], kind: str, shape: str, servers: list[str]) -> None:
    name, _ = _COMPARED[_SHAPES[shape].loop]
    scale = 1e6 if name == "per_cpu_second" else 1
    for at, server in enumerate(servers):
        summary = _find(summaries, kind, shape, server)
        if summary is None:
            continue
        value = summary[name]
        middle = value["median"] / scale
        spread = [[middle - value["min"] / scale], [value["max"] / scale - middle]]
        axes.barh(
            at,
            middle,
            xerr=spread,
            color="#1b6ca8" if server == OURS else "#b8c4ce",
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )
        axes.annotate(
            f" {middle:,.2f}" if middle < 100 else f" {middle:,.0f}",
            (value["max"] / scale, at),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(servers)), [_TITLES[server] for server in servers], fontsize=8)
    axes.set_ylim(len(servers) - 0.5, -0.5)
    axes.margins(x=0.22)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
