"""Time and memory that hostile input may take: measured on every large case, at two sizes.

::

    python -m tests.fuzz.bounds [MEGABYTES]

Each door is opened once for each case of 2.5 and of 10 MB. Three things must hold, none of which depends on what else
the machine does, as processor time counts and not time on the clock:

- at most `DOORS[...]` microseconds for each byte, several times what a slow machine takes;
- four times the input takes at most `WORSE` times four times as long: the time grows with the input, not with its
  square, on whatever machine;
- at most `MEMORY` bytes for each byte of the input. orjson takes 12 before it has read anything, and an empty list of
  three bytes becomes an object of 56 and a place in another.

It takes five minutes, so it belongs to the session ``fuzz`` and not to the tests.
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
"""Bytes of memory that any input may take."""

_TINY = 0.2
"""Seconds; what takes less says nothing about growth."""

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
    "lines": (4, _lines),  # a line of one letter is an entry of its own
    "lines in pieces": (4, lambda data: _lines(data, 8)),
    "row": (1, _ROW),
    "file": (4, _file),  # gzip reads a name byte by byte
    "judge": (1, lambda data: judged("/1.0/visitorEvents", data, allow_unknown=True)),
    "judge of ids": (1, lambda data: judged("/1.0/groupView", data.partition(b":")[2][:-1], allow_unknown=True)),
    "header": (1, lambda data: parse_retry_after(data.decode("latin-1"), now=_NOW)),
    "base url": (1, lambda data: checked_base_url(data.decode("latin-1"), allow_insecure=True)),
}
"""What is measured, and the microseconds that it may take for each byte."""


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
    """Return what the door `name` takes too much of, for a case of `size` bytes and a quarter of it."""
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
    """Measure all, tell what is too much, and return the exit status."""
    size = int(float(arguments[0]) * 1e6) if arguments else 10_000_000
    told = [each for name in DOORS for case in LARGE for each in complaints(name, case, size)]
    print("\n".join([*told, f"{len(DOORS)} doors, {len(LARGE)} cases of {size:,} bytes: {len(told)} too much"]))  # noqa: T201
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
