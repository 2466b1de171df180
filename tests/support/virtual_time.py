"""Event loops with a virtual clock, with which a test that waits for thirty seconds takes milliseconds.

An async test gets such a loop by the fixture `virtual_clock` (see `tests/conftest.py`). A test that needs several
loops, or a new loop for each example of Hypothesis, calls `run`.

The code under test must not do real input or output, and must not start threads. If every task waits and no timer is
set, the loop raises `Stuck` instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from retailrocket_async._runtime.loop_end import FAR

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

T = TypeVar("T")

TICK = 1e-9
"""Seconds by which the clock advances in each turn. Without them, code that polls the clock would never end."""


class Stuck(Exception):  # noqa: N818 - the name describes a state
    """Every task waits, and there is no timer that could wake a task."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while code runs, and jumps to the next timer when all tasks wait."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the virtual time in seconds, from 0."""
        return self._virtual_now

    def only_far(self) -> bool:
        """Return whether all timers are set so far ahead (`FAR`) that they are not meant to fire."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return all(timer.cancelled() or timer.when() >= FAR for timer in timers)

    def block(self, seconds: float) -> None:
        """Advance the clock by `seconds`, as a blocking call would."""
        self._virtual_now += seconds


class CheckedLoop(VirtualTimeLoop):
    """A virtual loop that runs checks after every turn; an exception of a check ends the test.

    Attributes:
        checks: functions without arguments; `Engine` and the tests append functions to this list.
        turns: the number of turns of the loop so far.
    """

    def __init__(self) -> None:
        self.checks: list[Callable[[], None]] = []
        self.turns = 0
        super().__init__()

    def block(self, seconds: float) -> None:
        """Run the checks, then advance the clock. The loop itself calls this method once in every turn."""
        self.turns += 1
        for check in self.checks:
            check()
        super().block(seconds)


class _Selector(selectors.BaseSelector):
    """A selector that returns the ready file descriptors, and advances the virtual clock instead of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready:
            if timeout is None or (timeout > 0 and self._loop.only_far()):
                raise Stuck("every task waits, and no timer is set")
            self._loop.block(max(timeout, TICK))
        return ready

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on a new `CheckedLoop`, as `asyncio.run` would on a real loop, and return its result."""
    with asyncio.Runner(loop_factory=CheckedLoop) as runner:
        return runner.run(coroutine)


def block(seconds: float) -> None:
    """Advance the clock of the running virtual loop by `seconds`, as a blocking call would."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.block(seconds)
