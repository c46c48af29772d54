"""Recordings in files: they come back, from any compression, and as far as they were flushed."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from pushservice.market import recording_files
from pushservice.market.recording_files import (
    BadRecording,
    Recording,
    RecordingFile,
    compression_of,
)
from pushservice.market.recording_format import (
    Header,
    Mark,
    Message,
    header_line,
    mark_line,
    message_line,
)

HEADER = Header(1_763_799_999_000_000, ("quote.*",))
MESSAGES = [
    Message(HEADER.began + n, f"quote.S{n % 7}", b'{"last":%d.50}' % n if n % 5 else b"\xff\n")
    for n in range(500)
]
LINES = [header_line(HEADER), *map(message_line, MESSAGES)]
each_compression = pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])


def write(path: Path, compression: str, lines: list[bytes] = LINES) -> Path:
    file = RecordingFile(str(path), compression)
    for n, line in enumerate(lines):
        file.write(line)
        if n % 40 == 0:
            file.flush()
    file.close()
    return path


def read(path: Path) -> tuple[list[Message | Mark], list[str]]:
    with Recording(str(path)) as recording:
        found = list(recording)
        assert recording.header == HEADER
        return found, recording.warnings


@each_compression
def test_a_recording_comes_back(tmp_path, compression):
    assert read(write(tmp_path / "r", compression)) == (MESSAGES, [])


@each_compression
def test_what_was_written_is_smaller_where_it_is_compressed(tmp_path, compression):
    size = write(tmp_path / "r", compression).stat().st_size
    plain = sum(map(len, LINES))
    assert size == plain if compression == "none" else size < plain / 4


def test_other_programs_can_read_what_is_compressed(tmp_path):
    gz, zst = write(tmp_path / "a", "gzip"), write(tmp_path / "b", "zstd")
    assert gzip.decompress(gz.read_bytes()) == b"".join(LINES)
    with zstandard.open(zst, "rb") as lines:
        assert lines.read() == b"".join(LINES)


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        ("a.jsonl", "none"),
        ("a.jsonl.gz", "gzip"),
        ("a.jsonl.zst", "zstd"),
        ("a.zstd", "zstd"),
        ("-", "none"),
    ],
)
def test_a_name_says_the_compression(name, compression):
    assert compression_of(name) == compression


@each_compression
def test_all_that_was_flushed_is_there_after_an_abrupt_end(tmp_path, compression):
    path = tmp_path / "r"
    program = """
import sys, os, signal
from pushservice.market.recording_files import RecordingFile
file = RecordingFile(sys.argv[1], sys.argv[2])
for n, line in enumerate(sys.stdin.buffer):
    if n == 300:
        file.flush()
    file.write(line)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), compression],
        input=b"".join(LINES),
        env=os.environ | {"PYTHONPATH": str(Path(recording_files.__file__).parents[2])},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    found, _ = read(path)
    assert found[:299] == MESSAGES[:299]
    assert found == MESSAGES[: len(found)]


@each_compression
def test_a_recording_cut_anywhere_gives_what_is_before_the_cut_and_a_warning(tmp_path, compression):
    whole = write(tmp_path / "r", compression).read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(whole) - 1, len(whole) // 2, -max(1, len(whole) // 60)):
        cut.write_bytes(whole[:size])
        with Recording(str(cut)) as recording:
            found = list(recording)
        assert found == MESSAGES[: len(found)]
        if compression == "none":
            # All but the last line, unless the cut took just its end.
            assert len(found) >= whole[:size].count(b"\n") - 1
            ends_with_a_line = whole[:size].endswith(b"\n") or whole[size : size + 1] == b"\n"
            assert bool(recording.warnings) is not ends_with_a_line
        else:
            assert any("cut off" in warning for warning in recording.warnings)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_recordings_put_together_are_refused_at_the_second_header_and_read_until_there(
    tmp_path, compression
):
    path = write(tmp_path / "r", compression)
    path.write_bytes(path.read_bytes() * 2)
    found = []
    with Recording(str(path)) as recording, pytest.raises(BadRecording, match="line 502"):
        found.extend(iter(recording))
    assert not recording.warnings


def test_parts_of_one_recording_that_were_compressed_each_are_read_as_one(tmp_path):
    path = tmp_path / "r"
    path.write_bytes(b"".join(gzip.compress(line) for line in LINES[:20]))
    assert read(path) == (MESSAGES[:19], [])


def test_marks_and_what_is_not_known_stand_between_messages(tmp_path):
    mark = Mark(HEADER.began + 7, up=False)
    lines = [LINES[0], LINES[1], mark_line(mark), b'{"t":1,"new":1}\n', LINES[2]]
    assert read(write(tmp_path / "r", "none", lines)) == ([MESSAGES[0], mark, MESSAGES[1]], [])


def test_a_line_longer_than_what_is_read_at_once_is_one_line(tmp_path):
    long = Message(HEADER.began, "quote.A", b'"%b"' % (b"x" * 1_000_000))
    path = write(tmp_path / "r", "none", [LINES[0], message_line(long), LINES[1]])
    assert read(path) == ([long, MESSAGES[0]], [])


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_files, "_MAX_LINE", 200_000)
    path = tmp_path / "r"
    path.write_bytes(LINES[0] + b"x" * 300_000)
    with Recording(str(path)) as recording, pytest.raises(BadRecording, match="line 2 has no end"):
        list(recording)


def test_an_invalid_line_is_named(tmp_path):
    path = write(tmp_path / "r", "none", [*LINES[:3], b"oops\n", *LINES[3:]])
    with Recording(str(path)) as recording, pytest.raises(BadRecording, match="line 4: not a line"):
        list(recording)


def test_damaged_compressed_data_is_an_error(tmp_path):
    path = write(tmp_path / "r", "gzip")
    damaged = bytearray(path.read_bytes())
    damaged[-6] ^= 255
    path.write_bytes(bytes(damaged))
    with pytest.raises(BadRecording, match="damaged"), Recording(str(path)) as recording:
        list(recording)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"SYMBOL,LAST\n", "not the header"),
        (b"\x1f\x8b", "ends before its first line: its writer was cut off"),
        (b"\x1f\x8bnothing", "damaged"),
    ],
)
def test_what_is_no_recording_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadRecording, match=rf"r\.jsonl.* {words}"):
        Recording(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadRecording, match=r"can't read .*/nothing: No such file"):
        Recording(str(tmp_path / "nothing"))
    with pytest.raises(BadRecording, match="Is a directory"):
        Recording(str(tmp_path))


def test_an_existing_file_is_only_overwritten_on_request(tmp_path):
    path = write(tmp_path / "r", "none")
    with pytest.raises(FileExistsError):
        RecordingFile(str(path), "none")
    assert read(path)[0] == MESSAGES
    RecordingFile(str(path), "none", overwrite=True).close()
    assert path.read_bytes() == b""


@each_compression
def test_the_standard_streams_are_used_and_left_open(monkeypatch, compression):
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out))
    file = RecordingFile("-", compression)
    file.write(LINES[0])
    file.write(LINES[1])
    file.flush()
    file.close()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(out.getvalue())))
    with Recording("-") as recording:
        assert list(recording) == MESSAGES[:1]
        assert recording.name == "the standard input"
    assert not sys.stdin.buffer.closed


@pytest.fixture
def deadline() -> Iterator[None]:
    """What reads a pipe where nothing comes ends as a failure."""

    def late(*_: object) -> None:
        raise AssertionError("it was held up")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("deadline")
@each_compression
def test_reading_the_standard_input_never_blocks(monkeypatch, compression):
    theirs, ours = os.pipe()
    with os.fdopen(theirs, "rb") as stdin, os.fdopen(ours, "wb", 0) as pipe:
        file = RecordingFile(f"/dev/fd/{ours}", compression, overwrite=True)

        def write(*lines: bytes) -> None:
            for line in lines:
                file.write(line)
            file.flush()

        write(*LINES[:2])
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stdin))
        with Recording("-") as recording:
            found = iter(recording)
            assert next(found) == MESSAGES[0]
            assert [next(found), next(found)] == [None, None]
            write(LINES[2][:9])
            assert next(found) is None
            write(LINES[2][9:], LINES[3])
            later = [each for _, each in zip(range(9), found, strict=False) if each is not None]
            assert later == MESSAGES[1:3]
            file.close()
            pipe.close()
            assert [each for each in found if each is not None] == []
            assert not recording.warnings
