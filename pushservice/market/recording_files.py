"""Files of recordings, plain or compressed: written and read line by line.

Must not know: what the lines mean, beyond that the first is the header; Redis; or who plays them.
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

#: compressions of a recording, and the file names for them
COMPRESSIONS: Final = {"none": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
#: stands for the standard output, or the standard input
STANDARD: Final = "-"

_CHUNK: Final = 64 * 1024
#: bytes that tell the compression of a file
_MAGIC: Final = 4
#: most bytes of a line; only a payload near Redis's largest string would be longer
_MAX_LINE: Final = 256 * 1024 * 1024


class BadRecording(ValueError):
    """A recording can't be read; the text names the file, the line if there is one, and why."""


def compression_of(name: str) -> str:
    """The compression by a file's name: a key of COMPRESSIONS."""
    if name.endswith(".gz"):
        return "gzip"
    return "zstd" if name.endswith((".zst", ".zstd")) else "none"


class RecordingFile:
    """Writes a recording. Lines are in the file after each `flush`.

    `path` is that of the file, or `-` for the standard output. Raises OSError when it can't be
    written, and FileExistsError when the file exists, unless `overwrite` is true.
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
        """Write a line."""
        self._lines.write(line)

    def flush(self) -> None:
        """Make all lines readable in the file, even if this process crashes now."""
        # Both compressors end a block here, so that a reader gets all before it.
        if self._lines is not self._file:
            self._lines.flush()
        self._file.flush()

    def close(self) -> None:
        """Write the end and close the file, which is closed even if that fails."""
        try:
            if self._lines is not self._file:
                self._lines.close()
            self._file.flush()
        finally:
            if self._own:
                self._file.close()


class Recording:
    """Reads a recording of any compression: iterate over its messages and marks, once.

    The iterator of the standard input gives None where no more is there yet, so that it never
    blocks. Only the header is waited for. Once all is read, `warnings` has a line for people for
    an end that was cut off and for a last line that was. Raises BadRecording for a file that is not
    a recording, and for a line that is not valid, with its number.
    """

    def __init__(self, path: str) -> None:
        """`path` is that of a file, or `-` for the standard input."""
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
                # A compressed file may be cut off before the end of its first block.
                cut = f"{self.name} ends before its first line: its writer was cut off"
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
                    f"{self.name}: the last line is cut off; its {len(line)} bytes were skipped"
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
        """Each line with its number and whether it was complete. None: see the class."""
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
        """The decompressed bytes; the first bytes of the file tell the compression."""
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
            raise BadRecording(f"{self.name}: the compressed data is damaged: {error}") from None
        except OSError as error:
            reason = error.strerror or os.strerror(error.errno or 0)
            raise BadRecording(f"can't read {self.name}: {reason}") from None

    def _chunks(self) -> Iterator[bytes | None]:
        """The bytes of the file; None where no more are there yet."""
        if self._own:
            read: Any = self._file.read
        else:
            # Read what is there and do not wait for more.
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
                    # Files that were joined with cat go on after an end.
                    stream = begin()
                yield stream.decompress(rest)
                rest = stream.unused_data
        if not stream.eof:
            self.warnings.append(f"{self.name} has no end: its writer was cut off")


def _is_readable(file: BinaryIO) -> bool:
    """Whether a read would return at once, with data or at the end."""
    try:
        return bool(select.select([file], [], [], 0)[0])
    except io.UnsupportedOperation:
        # It is not a file of the system: all its data is there.
        return True


def _opened(path: str, mode: str) -> Any:
    return Path(path).open(mode)
