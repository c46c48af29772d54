"""Certificates that expire and files that change: a clock for time, real files."""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path

import pytest
from certificate_makers import (
    DAY,
    NOW,
    A,
    B,
    material,
)
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from pushservice.tls.certificates import Certificates
from pushservice.tls.material import read_material
from pushservice.tls.watches import ExpiryWatch, FilesWatch


@pytest.fixture
def logged():
    """What is logged, as (level, text)."""
    lines = []

    def observe(event) -> None:
        lines.append((event["log_level"].name, formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def take(lines: list) -> list:
    """What was logged since the last time."""
    taken = lines[:]
    del lines[:]
    return taken


@pytest.fixture
def expiry():
    """expiry(certificates): a watch that was started, and its clock."""
    clock = Clock()
    watches = []

    def start(certificates: Certificates) -> Clock:
        seconds = datetime.timedelta(seconds=1)
        watches.append(ExpiryWatch(clock, certificates, lambda: NOW + clock.seconds() * seconds))
        watches[-1].start()
        return clock

    yield start
    for watch in watches:
        watch.stop()
        watch.stop()
    assert clock.getDelayedCalls() == []


def test_who_ends_soon_is_said_at_the_start_and_once_a_day(expiry, logged):
    pair = material("a.example", "b.example", ends=NOW + 2.5 * DAY)
    clock = expiry(Certificates([A, pair]))
    whom = "the certificate /x/a.example/chain.pem for a.example, b.example"
    last = "on 2026-11-25: renew it"
    assert take(logged) == [("warn", f"{whom} ends in 2 days, {last}")]
    clock.advance(86399)
    assert take(logged) == []
    clock.advance(1)
    assert take(logged) == [("warn", f"{whom} ends in 1 day, {last}")]
    clock.advance(86400)
    assert take(logged) == [("warn", f"{whom} ends in less than a day, {last}")]
    for _ in range(2):
        clock.advance(86400)
        assert take(logged) == [
            ("error", f"{whom} ended on 2026-11-25, clients refuse it: renew it")
        ]


@pytest.mark.parametrize(("days", "lines"), [(14.9, 1), (15, 0)])
def test_fourteen_days_are_soon_and_fifteen_are_not(expiry, logged, days, lines):
    expiry(Certificates([material("a.example", ends=NOW + days * DAY)]))
    assert len(logged) == lines


def test_a_renewed_certificate_is_not_said_any_more(expiry, logged):
    certificates = Certificates([material("a.example", ends=NOW + DAY)])
    clock = expiry(certificates)
    assert len(take(logged)) == 1
    certificates.replace([A])
    clock.advance(86400)
    assert logged == []


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "/x/nobody/chain.pem ends in"),
        ([f"{n}.example" for n in "abc"], "for a.example, b.example, c.example ends in"),
        (
            [f"{n}.example" for n in "abcd"],
            "for a.example, b.example, c.example and 1 more ends in",
        ),
        (
            [f"{n}.example" for n in "abcde"],
            "for a.example, b.example, c.example and 2 more ends in",
        ),
    ],
)
def test_of_many_names_the_first_are_said(expiry, logged, names, text):
    expiry(Certificates([material(*names, ends=NOW + DAY)]))
    assert text in logged[0][1]


def test_without_a_clock_for_dates_the_machines_own_counts(logged):
    real = datetime.datetime.now(datetime.UTC)
    watch = ExpiryWatch(Clock(), Certificates([material("a.example", ends=real + 5.5 * DAY)]))
    watch.check()
    assert "ends in 5 days" in logged[0][1]


# -- files that change -----------------------------------------------------------------------------


class Watched:
    """A directory with a pair of files, their watch and its clock; `calls` counts changes."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "live.crt", directory / "live.key"
        self.certificate.write_bytes(b"certificate")
        self.key.write_bytes(b"key")
        self.calls = 0
        self.fault: Exception | None = None
        self.clock = Clock()
        self.watch = self.start()

    def start(self) -> FilesWatch:
        paths = [self.certificate, self.key, self.certificate]
        self.watch = FilesWatch(self.clock, paths, self.changed)
        self.watch.start()
        return self.watch

    def changed(self) -> None:
        self.calls += 1
        if self.fault is not None:
            raise self.fault

    def look(self, times: int = 1) -> int:
        """Let the watch look so many times; returns how often it called since the last time."""
        before = self.calls
        for _ in range(times):
            self.clock.advance(10)
        return self.calls - before


@pytest.fixture
def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.watch.stop()
    watched.watch.stop()
    assert watched.clock.getDelayedCalls() == []


def put(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    beside = path.with_name("beside")
    beside.write_bytes(data)
    beside.replace(path)


def test_files_that_stay_call_nothing(watched, logged):
    assert watched.look(100) == 0
    assert logged == []


def test_files_are_looked_at_every_ten_seconds(watched):
    put(watched.key, b"new")
    watched.clock.pump([0.5] * 39)
    assert watched.calls == 0
    watched.clock.advance(0.5)
    assert watched.calls == 1


def test_a_file_renamed_into_place_is_a_change_once_it_settled(watched):
    put(watched.certificate, b"certificate")
    assert watched.look() == 0
    assert watched.look() == 1
    assert watched.look(10) == 0


def test_a_file_rewritten_in_place_is_a_change(watched):
    watched.key.write_bytes(b"yek")
    os.utime(watched.key, ns=(0, 10**18))
    assert watched.look(2) == 1
    watched.key.write_bytes(b"longer")
    os.utime(watched.key, ns=(0, 10**18))
    assert watched.look(10) == 1


def test_a_symbolic_link_that_leads_elsewhere_is_a_change(watched, tmp_path):
    # What Kubernetes does: the files lead through a link to a directory, which is replaced.
    for number in "12":
        (tmp_path / number).mkdir()
        (tmp_path / number / "tls.crt").write_bytes(b"certificate")
    (tmp_path / "data").symlink_to("1")
    watched.certificate.unlink()
    watched.certificate.symlink_to("data/tls.crt")
    assert watched.look(3) == 1
    (tmp_path / "swap").symlink_to("2")
    (tmp_path / "swap").replace(tmp_path / "data")
    assert watched.look() == 0
    assert watched.look() == 1


def test_a_half_written_pair_is_waited_for(watched):
    put(watched.certificate, b"new")
    assert watched.look() == 0
    put(watched.key, b"new")
    assert watched.look() == 0
    assert watched.look() == 1
    assert watched.look(10) == 0


def test_a_second_half_that_comes_late_is_a_change_of_its_own(watched):
    put(watched.certificate, b"new")
    assert watched.look(3) == 1
    put(watched.key, b"new")
    assert watched.look(3) == 1


def test_while_files_keep_changing_nothing_is_called(watched):
    for number in range(10):
        put(watched.key, b"%d" % number)
        assert watched.look() == 0
    assert watched.look() == 1


def test_a_missing_file_is_said_once_and_calls_nothing_until_it_is_back(watched, logged):
    watched.key.unlink()
    assert watched.look(20) == 0
    missing = "No such file or directory"
    assert take(logged) == [
        (
            "warn",
            f"can't look at {watched.key}: {missing}; what was read from it before stays in use",
        )
    ]
    put(watched.certificate, b"new")
    assert watched.look(5) == 0, "the pair is not whole"
    watched.key.write_bytes(b"new")
    assert watched.look() == 0
    assert watched.look() == 1
    assert take(logged) == []
    watched.key.unlink()
    assert watched.look(2) == 0
    assert len(take(logged)) == 1, "a new fault is said again"


def test_a_file_missing_at_one_look_alone_is_not_worth_a_word(watched, logged):
    watched.key.unlink()
    assert watched.look() == 0
    watched.key.write_bytes(b"new")
    assert watched.look(2) == 1
    assert logged == []


def test_another_missing_file_is_said_by_itself(watched, logged):
    watched.key.unlink()
    watched.look(3)
    assert len(take(logged)) == 1
    watched.certificate.unlink()
    watched.look(3)
    assert [str(watched.certificate) in text for _, text in logged] == [True]


def test_files_that_come_after_the_watch_are_a_change(watched):
    watched.watch.stop()
    watched.key.unlink()
    watched.start()
    assert watched.look(3) == 0
    watched.key.write_bytes(b"key")
    assert watched.look(3) == 1


def test_a_change_before_the_first_look_is_not_missed(watched):
    watched.watch.stop()
    watched.watch = FilesWatch(watched.clock, [watched.key], watched.changed)
    put(watched.key, b"new")
    watched.watch.start()
    assert watched.look(2) == 1


@contextlib.contextmanager
def as_nobody():
    """Without the rights that root has to all files."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_rights_that_are_taken_away_are_said_and_their_return_calls_only_for_a_change(
    watched, logged, tmp_path
):
    tmp_path.chmod(0)
    with as_nobody():
        assert watched.look(5) == 0
    tmp_path.chmod(0o700)
    assert [text.partition(";")[0] for _, text in take(logged)] == [
        f"can't look at {path}: Permission denied" for path in (watched.certificate, watched.key)
    ]
    assert watched.look(5) == 0
    watched.key.chmod(0)
    assert watched.look(5) == 1
    watched.key.chmod(0o600)
    assert watched.look(5) == 1, "what could not be read can be read now"
    assert logged == []


@pytest.mark.parametrize("target", ["live.key", "live.crt/below"])
def test_a_path_that_leads_nowhere_is_one_more_fault(watched, logged, target):
    watched.key.unlink()
    watched.key.symlink_to(target)
    assert watched.look(5) == 0
    assert len(logged) == 1


def test_what_goes_wrong_with_a_change_is_logged_and_the_watch_goes_on(watched, logged_failures):
    watched.fault = RuntimeError("on purpose")
    put(watched.key, b"new")
    assert watched.look(10) == 1
    assert len(logged_failures.flush(RuntimeError)) == 1
    watched.fault = None
    put(watched.key, b"newer")
    assert watched.look(10) == 1


def test_a_watch_that_was_stopped_looks_no_more(watched):
    put(watched.key, b"new")
    watched.look()
    watched.watch.stop()
    assert watched.look(5) == 0


def test_a_renewed_pair_is_served_once_both_files_are_there(tmp_path):
    files = tmp_path / "chain.pem", tmp_path / "key.pem"
    for path, data in zip(files, (A.certificate_pem, A.key_pem), strict=True):
        path.write_bytes(data)
    clock = Clock()
    refused = []

    def reload() -> None:
        try:
            certificates.replace([read_material(*files)])
        except ValueError as error:
            refused.append(str(error))

    watch = FilesWatch(clock, files, reload, every=1.0)
    certificates = Certificates([read_material(*files)])
    watch.start()
    put(files[0], B.certificate_pem)
    clock.pump([1.0] * 3)
    assert refused == [f"the key {files[1]} does not belong to the first certificate in {files[0]}"]
    assert certificates.expiries()[0].names == ("a.example", "www.a.example")
    put(files[1], B.key_pem)
    clock.pump([1.0] * 3)
    assert len(refused) == 1
    assert certificates.expiries()[0].names == ("*.b.example", "b.example")
    watch.stop()
