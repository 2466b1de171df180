"""Checks the time and the memory that functions need for large hostile input.

::

    python -m tests.fuzz.bounds [MEGABYTES]

A door is a function that reads data from outside. Each door reads each large case of `tests.fuzz.cases` in two sizes,
2.5 MB and 10 MB by default. The time is processor time, so the results do not depend on other processes. Three bounds
must hold:

- A door takes at most `DOORS[...]` microseconds for each byte, which is several times what a slow machine needs.
- An input that is four times as long takes at most `4 * WORSE` times as long. So the time grows in proportion to the
  input and not to its square, on any machine.
- A door takes at most `MEMORY` bytes of memory for each byte of the input, plus `SLACK` bytes. The parser orjson alone
  takes 12 bytes for each byte before it has read anything, and turns an empty list (three bytes with the comma) into an
  object of 56 bytes and a pointer.

The check takes five minutes, so it is a part of the nox session ``fuzz`` and not of the tests.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from retailrocket_async import Codec, ConfigurationError, EventValidationError
from retailrocket_async._http.base_url import checked_base_url
from retailrocket_async._http.reply import parse_retry_after
from retailrocket_async.cli._clickstream import Clickstream
from retailrocket_async.cli._lines import Lines
from retailrocket_async.cli._reading import Source
from tests.fuzz.cases import LARGE
from tests.fuzz.oracle import judged

if TYPE_CHECKING:
    from collections.abc import Callable

WORSE = 3
MEMORY = 40
SLACK = 2 * 1024 * 1024
"""Bytes of memory that a door may take in addition, whatever the size of the input."""

_TINY = 0.2
"""Seconds. A shorter time is too inexact to compare the times of two sizes."""

_CODEC = Codec()
_ROW = Clickstream(9.9, 2).event
_NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)


def _lines(data: bytes, step: int = 64 * 1024) -> None:
    reader = Lines("in", Clickstream(9.9, 2), allow_custom=True)
    for at in range(0, len(data), step):
        for _ in reader.feed(data[at : at + step]):
            pass
    for _ in reader.finish():
        pass


def _file(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "events")
        path.write_bytes(data)
        for _ in Source(path).chunks():
            pass


DOORS: dict[str, tuple[float, Callable[[bytes], object]]] = {
    "decode": (1, lambda data: _CODEC.decode(data, allow_custom=True)),
    "lines": (4, _lines),  # each line makes an object, even a line of one letter
    "lines in pieces": (4, lambda data: _lines(data, 8)),
    "row": (1, _ROW),
    "file": (4, _file),  # the gzip module reads a file name byte by byte
    "judge": (1, lambda data: judged("/1.0/visitorEvents", data, allow_unknown=True)),
    "judge of ids": (1, lambda data: judged("/1.0/groupView", data.partition(b":")[2][:-1], allow_unknown=True)),
    "header": (1, lambda data: parse_retry_after(data.decode("latin-1"), now=_NOW)),
    "base url": (1, lambda data: checked_base_url(data.decode("latin-1"), allow_insecure=True)),
}
"""The doors by name, each with the microseconds that it may take for each byte."""


def _opened(door: Callable[[bytes], object], data: bytes) -> None:
    with suppress(EventValidationError, ConfigurationError):
        door(data)


def _seconds(door: Callable[[bytes], object], data: bytes) -> float:
    gc.collect()
    begun = time.process_time()
    _opened(door, data)
    return time.process_time() - begun


def _bytes(door: Callable[[bytes], object], data: bytes) -> int:
    tracemalloc.start()
    try:
        _opened(door, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def complaints(name: str, case: str, size: int) -> list[str]:
    """Measure the door `name` (a function that reads data from outside) on two sizes of a case.

    The sizes are `size` and a quarter of it, in bytes. Return a message for each exceeded bound.
    """
    allowed, door = DOORS[name]
    small, large = LARGE[case](size // 4), LARGE[case](size)
    briefly, long = _seconds(door, small), _seconds(door, large)
    memory = _bytes(door, small)
    told = []
    if long > allowed * len(large) / 1e6 + _TINY:
        told.append(f"{long:.2f} s for {len(large):,} bytes")
    if long > _TINY and long > WORSE * briefly * len(large) / len(small) + _TINY:
        told.append(f"{briefly:.2f} s for {len(small):,} bytes, and {long:.2f} s for {len(large):,}")
    if memory > MEMORY * len(small) + SLACK:
        told.append(f"{memory:,} bytes of memory for {len(small):,} of input")
    return [f"{name}, {case}: {each}" for each in told]


def main(arguments: list[str]) -> int:
    """Measure all doors (functions that read data from outside) on all cases; print a line for each exceeded bound.

    Return the exit status: 1 if a bound is exceeded.
    """
    size = int(float(arguments[0]) * 1e6) if arguments else 10_000_000
    told = [each for name in DOORS for case in LARGE for each in complaints(name, case, size)]
    print("\n".join([*told, f"{len(DOORS)} doors, {len(LARGE)} cases of {size:,} bytes: {len(told)} too much"]))  # noqa: T201
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
