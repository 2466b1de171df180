"""Reads inputs as bytes, in a thread: files and the standard input, plain or gzipped.

Reading from a pipe or a network drive can take any time, and must not block the event loop. The thread is a daemon
thread, because such a read cannot be interrupted when the command ends.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import itertools
import os
import select
import sys
import threading
import time
import zlib
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, BinaryIO, cast

import attrs

from retailrocket_async.cli._terminal import fail

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

_CHUNK = 64 * 1024
"""Size of a chunk in bytes: some 500 events, so that parsing a chunk blocks the event loop for only 1 to 2 ms."""

_AHEAD = 4
"""Number of chunks that are read in advance."""

_GZIP = b"\x1f\x8b"
"""The first bytes of every gzip file (RFC 1952, 2.3.1)."""

_PAUSE = 0.2
"""Seconds between two checks of a followed file."""

STDIN = "-"


@attrs.frozen
class Chunk:
    """A piece of an input.

    Attributes:
        source: the input.
        data: the decompressed bytes; empty in the last chunk.
        position: number of bytes read so far, counted as stored, i.e. before decompressing.
        failure: in the last chunk, why the rest of the input could not be read, or None if everything was read;
            always None in the other chunks.
    """

    source: Source
    data: bytes
    position: int
    failure: str | None = None


class Source:
    """One input: a file, or the standard input.

    Args:
        path: the file; ``-`` for the standard input. If the file cannot be read, the command exits with a sentence.
        follow: at the end of the file, wait for appended data and never stop; also read files that replace the file.

    Attributes:
        name: the name for messages.
        size: size of the stored file in bytes; None if the size is not known, e.g. for a pipe.
        position: number of stored bytes that were read so far.
    """

    def __init__(self, path: Path, *, follow: bool = False) -> None:
        self._path = path
        self._follow = follow
        self._is_stdin = str(path) == STDIN
        if self._is_stdin and cast("object", sys.stdin) is None:
            fail("the standard input is closed: there is nothing to read")
        if not self._is_stdin:
            _check_readable(path)
        self.name = "<stdin>" if self._is_stdin else str(path)
        self.size = path.stat().st_size if not self._is_stdin and path.is_file() and not follow else None
        self.position = 0
        self._begin = b""
        self._file: BinaryIO

    def chunks(self) -> Generator[Chunk]:
        """Yield the input in chunks. The last chunk is empty, and says whether the input was read completely."""
        failure: str | None = None
        try:
            if self._follow:
                yield from self._followed()
            with self._opened() as self._file:
                for data in self._pieces():
                    yield Chunk(self, data, self.position)
        except EOFError:
            failure = "the gzip data ends too early"
        except (gzip.BadGzipFile, zlib.error) as error:
            failure = f"the gzip data is damaged: {error}"
        except OSError as error:
            failure = f"cannot be read: {error.strerror or type(error).__name__}"
        yield Chunk(self, b"", self.position, failure)

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` stored bytes. `GzipFile` calls this method."""
        if self._begin:
            end = size if size >= 0 else None
            data, self._begin = self._begin[:end], self._begin[len(self._begin[:end]) :]
            return data
        # None does not mean the end of the input: another program made the pipe non-blocking, and the pipe is empty.
        while (more := cast("bytes | None", self._file.read(size))) is None:
            select.select([self._file], [], [])
        self.position += len(more)
        return more

    def _opened(self) -> AbstractContextManager[BinaryIO]:
        # The file is unbuffered. So a read returns the bytes that a slow pipe contains, without waiting for more, and
        # the thread holds no lock of a buffer when the interpreter exits.
        if self._is_stdin:
            return nullcontext(cast("BinaryIO", getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)))
        return cast("BinaryIO", self._path.open("rb", buffering=0))

    def _pieces(self) -> Generator[bytes]:
        begin = b""
        # The first read of a pipe may return a single byte, so read until there are enough bytes to recognise gzip.
        while len(begin) < len(_GZIP) and (more := self.read(_CHUNK)):
            begin += more
        self._begin = begin
        if begin.startswith(_GZIP):
            with gzip.GzipFile(fileobj=cast("gzip.GzipFile", self)) as unzipped:
                while data := unzipped.read1(_CHUNK):
                    yield data
        else:
            while data := self.read(_CHUNK):
                yield data

    def _followed(self) -> Generator[Chunk]:
        """Yield the file's content, then appended data, and every file that replaces the file; never end."""
        file = cast("BinaryIO", self._path.open("rb", buffering=0))
        ended = True
        try:
            while True:
                other = self._other_than(file)
                # The old file is read again after the check for a new file, so that data that was appended before the
                # replacement is not missed.
                while data := file.read(_CHUNK):
                    if not self.position and data.startswith(_GZIP):
                        raise OSError(errno.EINVAL, "it is gzipped, and what is compressed cannot be followed")
                    self.position += len(data)
                    ended = data.endswith(b"\n")
                    yield Chunk(self, data, self.position)
                if other is None:
                    time.sleep(_PAUSE)
                    continue
                file.close()
                file = other
                if not ended:
                    # This line break ends the old file's last line if that line has no line break.
                    yield Chunk(self, b"\n", self.position)
        finally:
            file.close()

    def _other_than(self, file: BinaryIO) -> BinaryIO | None:
        """Open the path if another file is there than `file`, or if `file` was truncated; otherwise return None."""
        try:
            there = cast("BinaryIO", self._path.open("rb", buffering=0))
        except FileNotFoundError:
            # The file was moved away, and the new file does not exist yet.
            return None
        new, old = os.fstat(there.fileno()), os.fstat(file.fileno())
        if (new.st_dev, new.st_ino) != (old.st_dev, old.st_ino) or new.st_size < file.tell():
            return there
        there.close()
        return None


def _check_readable(path: Path) -> None:
    # The file is not opened here: if the file is a named pipe, opening and closing would disturb the writer.
    try:
        path.stat()
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    if path.is_dir():
        fail(f"{path} is a directory")
    if not os.access(path, os.R_OK):
        fail(f"cannot read {path}: permission denied")


def total_size(sources: Iterable[Source]) -> int | None:
    """Return the total size of all `sources` in bytes, or None if a size is not known."""
    total = 0
    for source in sources:
        if source.size is None:
            return None
        total += source.size
    return total


class Reader:
    """Reads inputs one after the other, in a thread, for an event loop.

    Args:
        sources: the inputs, in order.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = sources
        self._chunks: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        self._free = threading.Semaphore(_AHEAD)
        self._stopped = False

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """Yield the chunks of all inputs, until all inputs are read or `stop` is called."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="reader", daemon=True).start()
        while (chunk := await self._chunks.get()) is not None and not self._stopped:
            if isinstance(chunk, Exception):
                raise chunk
            self._free.release()
            yield chunk

    def stop(self) -> None:
        """Make `chunks` end, even if `chunks` waits for a read that may never return."""
        self._stopped = True
        self._free.release()
        self._chunks.put_nowait(None)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        # An error is passed to the event loop, because otherwise an error would look like the end of the input.
        last: Exception | None = None
        try:
            for chunk in itertools.chain.from_iterable(source.chunks() for source in self._sources):
                self._free.acquire()
                if self._stopped:
                    return
                loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except Exception as error:  # noqa: BLE001 - see above
            last = error
        # `call_soon_threadsafe` raises RuntimeError if the command has ended and the event loop is closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._chunks.put_nowait, last)
