"""Metrics as text: read back by the parsers of Prometheus and OpenMetrics."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pushservice.metrics import Histogram
from pushservice.monitoring.exposition import exposed

OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; q=0.5"


def some_figures() -> dict[str, Any]:
    histogram = Histogram((0.001, 0.5))
    for value in (0.0005, 0.001, 0.3, 9):
        histogram.observe(value)
    return {
        "ready": 0,
        "version": '1.2 "odd\\one"\n',
        "certificates": [{"file": "/a.crt", "days": -3}, {"file": "/b.crt", "days": 80}],
        "totals": {
            "subscriptions": 7,
            "age": 1500,
            "registry_lag": None,
            "counters": {"handshakes": 5, "handshakes_refused": 2, "bytes_out": 2**60},
            "measures": {"receive_to_write_seconds": histogram.snapshot()},
            "process": {"gc": {"0": {"collections": 4, "seconds": 0.25}}},
        },
        "slots": [
            {"number": 1, "flowing": 3, "behind": 1, "feed_up": 1, "process": {"cpu": 2.5}},
            {"number": 2, "flowing": 0, "behind": 0, "feed_up": 0, "process": {"cpu": None}},
            {"number": "manager", "process": {"cpu": 0.5}},
        ],
    }


def read(figures: dict[str, Any], accept: str = "") -> dict[tuple[str, frozenset[Any]], float]:
    """Every sample by its name and its labels; none comes twice."""
    content_type, text = exposed(figures, accept)
    wants = "application/openmetrics-text" if accept == OPENMETRICS else "text/plain"
    assert content_type.startswith(wants)
    parse = (
        openmetrics.text_string_to_metric_families
        if accept == OPENMETRICS
        else text_string_to_metric_families
    )
    found: dict[tuple[str, frozenset[Any]], float] = {}
    for family in parse(text.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def labelled(**labels: str) -> frozenset[Any]:
    return frozenset(labels.items())


@pytest.mark.parametrize("accept", ["", "text/plain", OPENMETRICS])
def test_each_number_is_where_its_declaration_says(accept):
    found = read(some_figures(), accept)
    assert found["quotepush_ready", labelled()] == 0
    assert found["quotepush_subscriptions", labelled()] == 7
    assert found["quotepush_feed_age_seconds", labelled()] == 1.5
    assert found["quotepush_sent_bytes_total", labelled()] == 2**60
    assert found["quotepush_handshakes_total", labelled(outcome="accepted")] == 5
    assert found["quotepush_handshakes_total", labelled(outcome="refused")] == 2
    assert found["quotepush_clients", labelled(worker="1", state="behind")] == 1
    assert found["quotepush_clients", labelled(worker="2", state="flowing")] == 0
    assert found["quotepush_feed_up", labelled(worker="2")] == 0
    assert found["quotepush_process_cpu_seconds_total", labelled(worker="manager")] == 0.5
    assert found["quotepush_certificate_days_left", labelled(file="/a.crt")] == -3
    assert found["quotepush_gc_seconds_total", labelled(generation="0")] == 0.25
    assert found["quotepush_build_info", labelled(version='1.2 "odd\\one"\n')] == 1


def test_what_is_not_known_has_no_series():
    found = read(some_figures())
    names = {name for name, _ in found}
    assert "quotepush_registry_lag_seconds" not in names
    assert ("quotepush_handshakes_total", labelled(outcome="aborted")) not in found
    assert ("quotepush_process_cpu_seconds_total", labelled(worker="2")) not in found
    assert ("quotepush_clients", labelled(worker="manager", state="behind")) not in found


def test_buckets_are_cumulative_and_their_bounds_belong_to_them():
    found = read(some_figures())
    name = "quotepush_receive_to_write_seconds"
    buckets = {
        dict(labels)["le"]: value
        for (each, labels), value in found.items()
        if each == f"{name}_bucket"
    }
    assert buckets == {"0.001": 2, "0.5": 3, "+Inf": 4}
    assert found[f"{name}_count", labelled()] == 4
    assert found[f"{name}_sum", labelled()] == pytest.approx(9.3015)


def test_two_certificates_of_one_file_are_one_series():
    figures = some_figures()
    figures["certificates"] *= 2
    assert read(figures) == read(some_figures())


def test_without_any_figures_there_is_no_metric_and_no_error():
    assert read({}) == {}
    assert read({}, OPENMETRICS) == {}
