"""An event loop whose clock is virtual: it waits for nothing, so half a minute of waiting takes milliseconds.

Only for code that does no real I/O and starts no threads. Where every task waits and no timer is set, the loop raises
`Stuck` instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from retailrocket_async._runtime.loop_end import FAR

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

T = TypeVar("T")

TICK = 1e-9
"""Seconds that one turn of the loop takes; without it, code that asks again at once would ask for ever."""


class Stuck(Exception):  # noqa: N818 - it names a state
    """Nothing is left that could wake any task."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while code runs, and jumps to the next timer when none does."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the virtual time in seconds, from 0."""
        return self._virtual_now

    def only_far(self) -> bool:
        """Whether no timer is set but those that are never to fire."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return all(timer.cancelled() or timer.when() >= FAR for timer in timers)

    def block(self, seconds: float) -> None:
        """Let time pass as a blocking call would: nothing else runs meanwhile."""
        self._virtual_now += seconds


class _Selector(selectors.BaseSelector):
    """Takes what is ready at once; moves the clock where a real selector would wait."""

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
    """Run `coroutine` on a virtual loop of its own, as `asyncio.run` would on a real one."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


def block(seconds: float) -> None:
    """Block the running virtual loop for `seconds`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.block(seconds)
