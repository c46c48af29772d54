"""The metrics as text: Prometheus' own, or OpenMetrics for who asks for it.

Must not know: what any metric means. The only user of prometheus_client, which writes the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from pushservice.monitoring.families import Family, Kind, all_families

_FAMILIES: Final = all_families()


def exposed(figures: Mapping[str, Any], accept: str = "") -> tuple[str, bytes]:
    """All metrics from `figures`, as the header Accept asks for them: content type and text.

    What the figures lack has no series.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(figures))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


class _Figures(Collector):
    """Hands prometheus_client what is in the figures."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is one of these in a registry, and nobody to be in the way of."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric that has any series."""
        for family in _FAMILIES:
            series = _series(family, self._figures)
            if series:
                yield _metric(family, series)


#: Values by the values of the labels; no two series have the same ones.
_Series = dict[tuple[str, ...], Any]


def _series(family: Family, figures: Mapping[str, Any]) -> _Series:
    each = family.each
    found: _Series = {}
    for entry in [figures] if each is None else _at(figures, each.path) or ():
        of_entry = () if each is None else (str(entry[each.key]),)
        for sample in family.samples:
            value = _at(entry, sample.path)
            if value is not None:
                values = (*of_entry, *(value for _, value in sample.labels))
                found[values] = value if sample.per == 1 else value / sample.per
    return found


def _metric(family: Family, series: _Series) -> Metric:
    labels = list(family.labels)
    name, about, unit = family.name, family.help, family.unit
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, about, labels=labels, unit=unit)
        for values, value in series.items():
            histogram.add_metric(values, list(_buckets(value)), value["sum"])
        return histogram
    if family.kind is Kind.INFO:
        (told,) = series.values()
        return InfoMetricFamily(name, about, value={family.samples[0].path: told})
    made = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = made(name, about, labels=labels, unit=unit)
    for values, value in series.items():
        metric.add_metric(values, value)
    return metric


def _buckets(histogram: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    bounds = [*map(floatToGoString, histogram["bounds"]), "+Inf"]
    return zip(bounds, accumulate(histogram["counts"]), strict=True)


def _at(entry: Mapping[str, Any], path: str) -> Any:
    found: Any = entry
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found
