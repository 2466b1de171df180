"""Makes calls of `flush` wait until all events that were accepted before the call are settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._runtime.futures import set_result

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterator


class Flush:
    """Counts down the items that one call of `flush` waits for: groups of buffered events, or events of a spool.

    The items are numbered in the order of their arrival: groups by `Run.generation`, events of a spool by their ids.

    Args:
        last: the highest number that the call waits for.
        remaining: number of items up to `last` that are not settled.
        finished: the future that is resolved when all of these items are settled.
    """

    __slots__ = ("finished", "last", "remaining")

    def __init__(self, last: int, remaining: int, finished: Future[None]) -> None:
        self.last = last
        self.remaining = remaining
        self.finished = finished

    def count_down(self, count: int) -> None:
        """Record that another `count` of the items up to `last` have been settled."""
        self.remaining -= count
        if self.remaining <= 0:
            self.end()

    def end(self) -> None:
        """Let the call of `flush` return."""
        set_result(self.finished, None)


class Flushes:
    """Holds the calls of `flush` that wait; iterating yields the `Flush` of each call."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Flush] = []

    def __iter__(self) -> Iterator[Flush]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, last: int, remaining: int, finished: Future[None]) -> None:
        """Return when `remaining` items with numbers up to `last` are settled; see `Flush` for the arguments."""
        flush = Flush(last, remaining, finished)
        self._waiting.append(flush)
        try:
            await finished
        finally:
            self._waiting.remove(flush)
