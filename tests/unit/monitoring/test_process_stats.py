"""What a process uses, held against what the kernel says of it elsewhere."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path

import psutil
import pytest

from pushservice.monitoring import process_stats
from pushservice.monitoring.process_stats import ProcessStats


@pytest.fixture
def measured():
    made = ProcessStats()
    made.start()
    yield made
    made.stop()
    made.stop()
    assert made._collected not in gc.callbacks


def test_memory_and_files_are_what_others_see(measured):
    seen = json.loads(json.dumps(measured.snapshot()))
    this = psutil.Process()
    assert abs(seen["memory"] - this.memory_info().rss) < 64 * 1024 * 1024
    assert abs(seen["files"] - this.num_fds()) <= 1
    assert seen["started"] <= time.time()


def test_an_open_file_is_one_more(measured):
    before = measured.snapshot()["files"]
    with Path(os.devnull).open() as _:
        assert measured.snapshot()["files"] == before + 1


def test_cpu_grows_with_work(measured):
    before = measured.snapshot()["cpu"]
    sum(range(1_000_000))
    assert measured.snapshot()["cpu"] > before


def test_collections_are_counted_by_generation_with_their_time():
    moments = iter([10.0, 10.5])
    measured = ProcessStats(lambda: next(moments))
    gc.disable()
    measured.start()
    try:
        gc.collect(1)
    finally:
        measured.stop()
        gc.enable()
    assert measured.snapshot()["gc"] == {
        "0": {"collections": 0, "seconds": 0.0},
        "1": {"collections": 1, "seconds": 0.5},
        "2": {"collections": 0, "seconds": 0.0},
    }


def test_a_collection_that_had_begun_before_is_left_out():
    measured = ProcessStats()
    measured._collected("stop", {"generation": 2})
    assert measured.snapshot()["gc"]["2"]["collections"] == 0


class NoCount:
    """A kernel that does not count files, or has no /proc at all."""

    def __init__(self, path: str) -> None:
        self.path = path

    def stat(self) -> NoCount:
        return self

    st_size = 0

    def read_bytes(self) -> bytes:
        raise FileNotFoundError(self.path)


def test_where_the_kernel_does_not_count_files_they_are_listed_once_in_a_while(monkeypatch):
    now = [0.0]
    listed = []
    monkeypatch.setattr(process_stats, "Path", NoCount)
    monkeypatch.setattr(
        process_stats.os, "listdir", lambda path: listed.append(path) or ["0", "1", "2"]
    )
    measured = ProcessStats(lambda: now[0])
    assert [measured.snapshot()["files"] for _ in range(3)] == [2, 2, 2]
    assert len(listed) == 1
    now[0] = 16.0
    measured.snapshot()
    assert len(listed) == 2


def test_what_can_not_be_read_is_none(monkeypatch):
    def refuse(_path: str) -> list[str]:
        raise PermissionError

    monkeypatch.setattr(process_stats, "Path", NoCount)
    monkeypatch.setattr(process_stats.os, "listdir", refuse)
    seen = ProcessStats().snapshot()
    assert (seen["files"], seen["memory"]) == (None, None)
