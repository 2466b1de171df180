"""The calls of `flush` that wait until the events from before the call are settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._runtime.futures import set_result

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterator


class Flush:
    """One call of `flush`, which waits for things that are numbered in the order in which they came.

    Args:
        last: the highest number that the call waits for.
        remaining: how many things up to `last` are not settled.
        finished: the future that gets its result when none remains.
    """

    __slots__ = ("finished", "last", "remaining")

    def __init__(self, last: int, remaining: int, finished: Future[None]) -> None:
        self.last = last
        self.remaining = remaining
        self.finished = finished

    def count_down(self, count: int) -> None:
        """Note that `count` of the things up to `last` were settled."""
        self.remaining -= count
        if self.remaining <= 0:
            self.end()

    def end(self) -> None:
        """Let the call return."""
        set_result(self.finished, None)


class Flushes:
    """The calls of `flush` that wait; iterating yields each of them."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Flush] = []

    def __iter__(self) -> Iterator[Flush]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, last: int, remaining: int, finished: Future[None]) -> None:
        """Return when `remaining` things with numbers up to `last` were settled; the arguments are those of `Flush`."""
        flush = Flush(last, remaining, finished)
        self._waiting.append(flush)
        try:
            await finished
        finally:
            self._waiting.remove(flush)
