"""Meters of this process: how late its event loop is, and on Linux what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_TICK = 0.005


class LagMeter:
    """Sleeps 5 ms again and again, and notes by how much more it slept.

    Attributes:
        worst: the longest such time in seconds.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self._since_taken = 0.0

    def take(self) -> float:
        """Return the longest time since the last call."""
        taken, self._since_taken = self._since_taken, 0.0
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
            self._since_taken = max(self._since_taken, late)


class GcMeter:
    """Notes how long the garbage collector stops everything, while the block runs.

    Attributes:
        worst: the longest collection in seconds.
        full: how many of them went through everything.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self.full = 0
        self._since = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._told)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._told)

    def _told(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._since = time.perf_counter()
        else:
            self.worst = max(self.worst, time.perf_counter() - self._since)
            self.full += info["generation"] == 2


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Return the number of open file descriptors."""
    # One of them is the folder's own.
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


class Sample(NamedTuple):
    """What this process held at a moment; `lag` is the worst since the sample before, in seconds."""

    at: float
    settled: int
    resident: int
    descriptors: int
    tasks: int
    lag: float


class Sampler:
    """Takes a sample once a second.

    Args:
        lag: the meter to read.
        settled: returns the number of events that have their outcome.

    Attributes:
        samples: those taken so far.
    """

    def __init__(self, lag: LagMeter, settled: Callable[[], int]) -> None:
        self.samples: list[Sample] = []
        self._lag = lag
        self._settled = settled

    async def run(self) -> None:
        """Go on without end."""
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
        """Return the samples in five parts of the same length."""
        count = len(self.samples)
        return [self.samples[part * count // 5 : (part + 1) * count // 5] for part in range(5)]
