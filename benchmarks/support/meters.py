"""Measures this process: CPU time, event-loop lag, garbage collection, and on Linux its memory and descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_TICK = 0.005


class CostMeter:
    """Measures the time and memory that a block costs this process.

    Attributes:
        cpu: seconds of user and system time, of all threads.
        wall: elapsed seconds.
        peak: the most bytes of memory that the process has held since its start.
    """

    def __enter__(self) -> Self:
        gc.collect()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall
        self.peak = peak_memory()


class LagMeter:
    """Measures the lag of the event loop: it sleeps 5 ms repeatedly, and records by how much each sleep was longer.

    Attributes:
        worst: the longest delay in seconds.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self._worst_since_take = 0.0

    def take(self) -> float:
        """Return the longest delay in seconds since the last call."""
        taken, self._worst_since_take = self._worst_since_take, 0.0
        return taken

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _measure(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due = now() + _TICK
            await asyncio.sleep(_TICK)
            late = now() - due
            self.worst = max(self.worst, late)
            self._worst_since_take = max(self._worst_since_take, late)


class GcMeter:
    """Measures how long the garbage collector stops this process while the block runs.

    Attributes:
        worst: the longest collection in seconds.
        full: the number of collections of the oldest generation.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self.full = 0
        self._started_at = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started_at = time.perf_counter()
        else:
            self.worst = max(self.worst, time.perf_counter() - self._started_at)
            self.full += info["generation"] == 2


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held; on Linux only."""
    # `getrusage` cannot be used, because its value is never below the peak of the parent process.
    found = re.search(rb"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_bytes())
    assert found is not None
    return int(found[1]) * 1024


def resident() -> int:
    """Return the bytes of memory that this process holds now; on Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_time(pid: int) -> float:
    """Return the seconds of user and system time of another process; on Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors() -> int:
    """Return the number of open file descriptors of this process; on Linux only."""
    # Listing the folder opens one more descriptor, which is subtracted.
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


class Sample(NamedTuple):
    """The state of this process at one moment.

    Attributes:
        at: seconds since the sampling began.
        settled: the number of events that have an outcome.
        resident: the bytes of memory that the process holds.
        descriptors: the number of open file descriptors.
        tasks: the number of asyncio tasks.
        lag: the longest delay of the event loop since the previous sample, in seconds.
    """

    at: float
    settled: int
    resident: int
    descriptors: int
    tasks: int
    lag: float


class Sampler:
    """Takes a sample of this process once a second.

    Args:
        lag: the meter that measures the event-loop lag.
        settled: a function that returns the number of events that have an outcome.

    Attributes:
        samples: the samples taken so far.
    """

    def __init__(self, lag: LagMeter, settled: Callable[[], int]) -> None:
        self.samples: list[Sample] = []
        self._lag = lag
        self._settled = settled

    async def run(self) -> None:
        """Take samples until cancelled."""
        started_at = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(1.0)
            self.samples.append(
                Sample(
                    at=asyncio.get_running_loop().time() - started_at,
                    settled=self._settled(),
                    resident=resident(),
                    descriptors=descriptors(),
                    tasks=len(asyncio.all_tasks()),
                    lag=self._lag.take(),
                )
            )

    def fifths(self) -> list[list[Sample]]:
        """Return the samples in five parts of equal length."""
        count = len(self.samples)
        return [self.samples[part * count // 5 : (part + 1) * count // 5] for part in range(5)]
