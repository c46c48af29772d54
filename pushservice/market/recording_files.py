"""Recordings in files: written so that an abrupt end costs a second at most, read from any of them.

Must not know: what the lines say, beyond that the first is the header; Redis; or who plays them.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import select
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import zstandard

from pushservice.market.recording_format import BadLine, Mark, Message, read_header, read_line

#: what a recording may be compressed by, and the names of files that say so
COMPRESSIONS: Final = {"none": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
#: stands for the standard output, or the standard input
STANDARD: Final = "-"

_CHUNK: Final = 64 * 1024
#: bytes that say how what follows is compressed
_MAGIC: Final = 4
#: bytes of the longest line: a payload of Redis's largest string, in base64, would be longer
_MAX_LINE: Final = 256 * 1024 * 1024


class BadRecording(ValueError):
    """It can't be read; the text names the file, the line where there is one, and why."""


def compression_of(name: str) -> str:
    """The compression that a file's name asks for: one of COMPRESSIONS."""
    if name.endswith(".gz"):
        return "gzip"
    return "zstd" if name.endswith((".zst", ".zstd")) else "none"


class RecordingFile:
    """A recording that is being written. Lines are in the file after each `flush`.

    `path` is the file's, or `-` for the standard output. Raises OSError when it can't be written,
    and FileExistsError where there is one already, unless `overwrite` is true.
    """

    def __init__(self, path: str, compression: str, *, overwrite: bool = False) -> None:
        self._own = path != STANDARD
        mode = "wb" if overwrite else "xb"
        self._file: BinaryIO = _opened(path, mode) if self._own else sys.stdout.buffer
        self._lines: Any = self._file
        if compression == "gzip":
            self._lines = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self._file)
        elif compression == "zstd":
            self._lines = zstandard.ZstdCompressor(level=3).stream_writer(self._file, closefd=False)

    def write(self, line: bytes) -> None:
        """Take a line."""
        self._lines.write(line)

    def flush(self) -> None:
        """Have all that was written readable in the file, whatever becomes of this process."""
        # Both end a block, so that a reader gets all before it; what is open stays open.
        if self._lines is not self._file:
            self._lines.flush()
        self._file.flush()

    def close(self) -> None:
        """End it in order. The file is closed even where its end can't be written."""
        try:
            if self._lines is not self._file:
                self._lines.close()
            self._file.flush()
        finally:
            if self._own:
                self._file.close()


class Recording:
    """A recording that is read, whatever it is compressed by: iterate over what it holds, once.

    From the standard input None stands for what is not there yet, so that nobody is held up who
    has other things to do. `header` is there at once, and waited for. `warnings` says what was left
    out, for people, once all is read: an end that was cut, and a line that was. Raises BadRecording
    for what is no recording, and for a line that is none, with its number.
    """

    def __init__(self, path: str) -> None:
        """`path` is a file's, or `-` for the standard input."""
        self.name = "the standard input" if path == STANDARD else path
        self.warnings: list[str] = []
        try:
            self._file: BinaryIO = sys.stdin.buffer if path == STANDARD else _opened(path, "rb")
        except OSError as error:
            raise BadRecording(f"can't read {path}: {error.strerror}") from None
        self._own = path != STANDARD
        # The header is waited for.
        self._waits = True
        self._rest = self._numbered()
        try:
            first = next(self._rest, None)
            self._waits = False
            if first is None:
                # What is compressed may be cut before its first block's end.
                cut = f"{self.name} ends before its first line: whoever wrote it was cut off"
                raise BadRecording(cut if self.warnings else f"{self.name} is empty")
            self.header = read_header(first[1])
        except BadLine as error:
            self.close()
            raise BadRecording(f"{self.name}: {error}") from None
        except BadRecording:
            self.close()
            raise

    def __iter__(self) -> Iterator[Message | Mark | None]:
        for numbered in self._rest:
            if numbered is None:
                yield None
                continue
            number, line, whole = numbered
            try:
                found = read_line(line)
            except BadLine as error:
                if whole:
                    raise BadRecording(f"{self.name}, line {number}: {error}") from None
                self.warnings.append(
                    f"{self.name}: the last line is cut; its {len(line)} bytes were left out"
                )
                return
            if found is not None:
                yield found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Read no more. May be called twice."""
        if self._own:
            self._file.close()

    # -- within ----------------------------------------------------------------------------------

    def _numbered(self) -> Iterator[tuple[int, bytes, bool] | None]:
        """The lines by number, without their ends; the last may have had none. None: see above."""
        number = 0
        begun: list[bytes] = []
        size = 0
        for chunk in self._plain():
            if chunk is None:
                yield None
                continue
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                number += 1
                yield number, b"".join([*begun, line]), True
                begun.clear()
                size = 0
            begun.append(rest)
            size += len(rest)
            if size > _MAX_LINE:
                raise BadRecording(f"{self.name}: line {number + 1} has no end")
        last = b"".join(begun)
        if last:
            yield number + 1, last, False

    def _plain(self) -> Iterator[bytes | None]:
        """The bytes as they were before they were compressed, by what the first of them say."""
        try:
            start = b""
            chunks = self._chunks()
            for chunk in chunks:
                start += chunk or b""
                if len(start) >= _MAGIC:
                    break
            chunks = itertools.chain([start], chunks)
            if start.startswith(b"\x1f\x8b"):
                yield from self._inflated(chunks, lambda: zlib.decompressobj(wbits=31))
            elif start.startswith(b"\x28\xb5\x2f\xfd"):
                yield from self._inflated(chunks, zstandard.ZstdDecompressor().decompressobj)
            else:
                yield from chunks
        except (zlib.error, zstandard.ZstdError) as error:
            raise BadRecording(f"{self.name}: what is compressed is damaged: {error}") from None
        except OSError as error:
            reason = error.strerror or os.strerror(error.errno or 0)
            raise BadRecording(f"can't read {self.name}: {reason}") from None

    def _chunks(self) -> Iterator[bytes | None]:
        """The bytes as they are; None where they are not there yet."""
        if self._own:
            read: Any = self._file.read
        else:
            # What there is, and no more: who writes it may take his time.
            read = self._file.read1  # type: ignore[attr-defined]  # of buffered streams
        while True:
            if not self._own and not self._waits and not _is_readable(self._file):
                yield None
                continue
            chunk = read(_CHUNK)
            if not chunk:
                return
            yield chunk

    def _inflated(self, chunks: Iterator[bytes | None], begin: Any) -> Iterator[bytes | None]:
        stream = begin()
        for chunk in chunks:
            if chunk is None:
                yield None
            rest = chunk
            while rest:
                if stream.eof:
                    # Files that were put together with cat go on after an end.
                    stream = begin()
                yield stream.decompress(rest)
                rest = stream.unused_data
        if not stream.eof:
            self.warnings.append(f"{self.name} ends before its end: whoever wrote it was cut off")


def _is_readable(file: BinaryIO) -> bool:
    """Whether a read would return at once, with something or at the end."""
    try:
        return bool(select.select([file], [], [], 0)[0])
    except io.UnsupportedOperation:
        # It is none of the system's, and has all.
        return True


def _opened(path: str, mode: str) -> Any:
    return Path(path).open(mode)
