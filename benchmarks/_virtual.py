"""An event loop that waits for nothing, so that an hour of waiting takes as long as the work in it.

For code without real I/O: where a real loop would wait for its next timer, this one moves its clock there.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_TURN = 1e-9
"""Seconds that one turn takes at least; without it, code that asks again at once would ask for ever."""


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits, and no timer is set")
            self._loop.now += max(timeout, _TURN)
        return ready


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on such a loop, as `asyncio.run` would on a real one."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(coroutine)
