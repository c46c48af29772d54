"""The declarations: well named, complete, and about what a daemon really says of itself."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from pushservice.config.config import Config
from pushservice.metrics import Counters, Measures
from pushservice.monitoring.exposition import _at
from pushservice.monitoring.families import CERTIFICATE, WORKER, Family, Kind, all_families
from pushservice.redis.url import redis_address
from pushservice.workers.plan import Plan
from pushservice.workers.single_process import SingleProcess

EACH = pytest.mark.parametrize("family", all_families(), ids=lambda family: family.name)


def test_no_two_have_the_same_name():
    names = [family.name for family in all_families()]
    assert len(names) == len(set(names))


@EACH
def test_names_follow_the_rules(family):
    assert re.fullmatch(r"quotepush(_[a-z]+)+", family.name)
    assert not family.name.endswith(("_total", "_info", "_count", "_sum", "_bucket"))
    assert family.name.endswith(family.unit)
    for unit in ("seconds", "bytes"):
        assert (unit in family.name) is (family.unit == unit)
    for label in family.labels:
        assert re.fullmatch(r"[a-z]+", label)
    assert not family.help[0].islower()
    assert not family.help.endswith(".")


@EACH
def test_no_two_series_of_one_have_the_same_labels(family):
    labels = [sample.labels for sample in family.samples]
    assert len(labels) == len(set(labels))
    assert len({tuple(name for name, _ in each) for each in labels}) == 1


@pytest.fixture
def told() -> dict[str, Any]:
    """What a daemon says that has all there can be."""
    from twisted.internet import reactor

    config = Config(
        plain=True,
        listen=("tcp:0:interface=127.0.0.1",),
        redis=(redis_address("unix:///nowhere/redis.sock"),),
        delays=(60.0,),
        auth="redis",
    )
    figures = SingleProcess(reactor, Plan(config, {})).figures()
    figures["certificates"] = [{"file": "a.crt", "names": ["a"], "days": 3}]
    figures["ready"] = 1
    for each in (figures["totals"], *figures["slots"]):
        each["age"], each["registry_lag"] = 5, 0.5
    return figures


@EACH
def test_what_is_declared_is_there_to_be_read(told, family):
    entries = [told] if family.each is None else told[family.each.path]
    assert entries
    for entry in entries:
        for sample in family.samples:
            value = _at(entry, sample.path)
            if family.kind is Kind.HISTOGRAM:
                assert set(value) == {"bounds", "counts", "sum"}
            elif family.kind is Kind.INFO:
                assert isinstance(value, str)
            else:
                assert isinstance(value, int | float), f"{sample.path}: {value}"


def read_by(families: list[Family], place: str) -> set[str]:
    paths = [sample.path for family in families for sample in family.samples]
    return {path.split(f"{place}.")[1].split(".")[0] for path in paths if f"{place}." in path}


def test_every_counter_and_every_histogram_is_in_some_metric():
    counters = {each.name for each in dataclasses.fields(Counters)}
    assert read_by(all_families(), "counters") == counters
    assert read_by(all_families(), "measures") == set(Measures().snapshot())


def test_what_only_makes_sense_of_one_process_has_its_number():
    of_workers = {family.name for family in all_families() if family.each is WORKER}
    assert {
        f"quotepush_{name}"
        for name in (
            *("clients", "quotes_in", "feed_up", "worker_state", "worker_restarts"),
            *("process_cpu_seconds", "process_resident_memory_bytes", "process_open_files"),
        )
    } <= of_workers
    assert [family.name for family in all_families() if family.each is CERTIFICATE] == [
        "quotepush_certificate_days_left"
    ]
