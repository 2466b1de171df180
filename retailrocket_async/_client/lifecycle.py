"""The methods of the client that start, flush and close the engine, and return the engine's counters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final, Self

from retailrocket_async._runtime.deadline import checked_timeout
from retailrocket_async._runtime.uncopyable import Uncopyable

if TYPE_CHECKING:
    from types import TracebackType

    from retailrocket_async._delivery.engine import Engine
    from retailrocket_async._stats import CloseReport, Stats

DEFAULT_CLOSE_TIMEOUT: Final = 15.0
"""The default time-out of `aclose` in seconds: half of the time that process managers usually give a process
to stop."""


class Lifecycle(Uncopyable):
    """Starts, flushes and closes the engine of a client, and warns if the client is garbage-collected unclosed."""

    _instead = "make a client in each process, e.g. with AsyncTrackingClient.from_env()"

    # `__repr__` reads these values even if the constructor raised an error.
    _base_url = ""
    _partner_id = ""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Wait until every event that was tracked before this call has an outcome.

        The events are sent without waiting for `Batching.linger`. A visitor's batches are sent one after the other, so
        k batches of one visitor take k response times.

        Args:
            timeout: seconds; default None: no limit. `RetryPolicy` limits the time of each batch.

        Raises:
            FlushTimeoutError: the time-out passed first; the client continues to send the remaining events.
                If events of one visitor wait for each other, the message says how many.
            WrongLoopError: see `track`.
        """
        await self._engine.flush(checked_timeout(timeout))

    async def aclose(self, timeout: float | None = DEFAULT_CLOSE_TIMEOUT) -> CloseReport:  # noqa: ASYNC109 - a deadline
        """Refuse new events, deliver the remaining events, and close the client.

        The time-out includes waiting for the rate limiter, and retries. If the time-out passes, or this call is
        cancelled, the events without an outcome become `Dropped` (never sent) or `Abandoned` (sent, but not
        confirmed); with a spool, `Kept`. A visitor's batches are sent one after the other, so a visitor with many
        events may need longer than the time-out. Another call of this method returns the same report.

        Args:
            timeout: seconds; default 15. None waits until all retries have ended.

        Raises:
            WrongLoopError: see `track`.
        """
        return await self._engine.aclose(checked_timeout(timeout))

    def stats(self) -> Stats:
        """Return an immutable snapshot of the client's counters; never blocks."""
        return self._engine.stats()

    async def __aenter__(self) -> Self:
        await self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The attribute is missing if the constructor raised an error.
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is not None and engine.started and not engine.closed:
            engine.loses("the client was garbage-collected")
            warnings.warn(
                f"unclosed {self!r}: use 'async with', or await aclose(), or buffered events may be lost",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        engine: Engine | None = getattr(self, "_engine", None)
        state = "new" if engine is None or not engine.started else "closed" if engine.closed else "open"
        return f"<AsyncTrackingClient partner_id={self._partner_id!r} base_url={self._base_url!r} {state}>"
