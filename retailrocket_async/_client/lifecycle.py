"""The part of the client that handles no events: it starts, flushes and closes the engine, and reports its counters."""

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
"""Seconds; half of the time that process managers commonly give a process to end."""


class Lifecycle(Uncopyable):
    """Starts, flushes and closes an engine, and warns if it is not closed."""

    _instead = "make a client in each process, e.g. with AsyncTrackingClient.from_env()"

    # Defaults for `__repr__` of a client whose constructor raised.
    _base_url = ""
    _partner_id = ""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Return when every event tracked before this call has its outcome.

        Args:
            timeout: seconds; default None, as long as it takes. `RetryPolicy` bounds each batch's time.

        Raises:
            FlushTimeoutError: the time passed first; the events stay in the client and go on being sent.
            WrongLoopError: as `track`.
        """
        await self._engine.flush(checked_timeout(timeout))

    async def aclose(self, timeout: float | None = DEFAULT_CLOSE_TIMEOUT) -> CloseReport:  # noqa: ASYNC109 - a deadline
        """Refuse new events, flush, close; the one deadline covers buffer, limiter, retries and requests.

        Events that have no outcome when the deadline passes, or when this call is cancelled, become `Dropped` (never
        sent) or `Abandoned` (sent, unanswered). Another call returns the same report.

        Args:
            timeout: seconds; default 15. None waits as long as the retries take.

        Raises:
            WrongLoopError: as `track`.
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
        # None if the constructor raised.
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
