"""Calls a broker's library, which may swallow a cancellation, raise anything, or never return."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from retailrocket_async._runtime.foreign_code import write_log

if TYPE_CHECKING:
    from collections.abc import Coroutine

_UNWIND = 1.0
"""Seconds to wait for a cancelled call to return before the call is cancelled again."""

_CANCELS = 3
"""Largest number of times that a call is cancelled. A library may swallow the first cancellation and go on waiting."""

logger = logging.getLogger("retailrocket_async")


async def result_of(call: Coroutine[Any, Any, Any], timeout: float) -> object:  # noqa: ASYNC109 - see below
    """Return the result of a call of a broker's library; raise if the call takes longer than `timeout` seconds.

    After the time-out the call is cancelled, and gets up to three more seconds to return. The call runs in a separate
    task. So the relay is not blocked if a library swallows the cancellation, and the relay is not cancelled if a
    library raises `CancelledError` although nothing cancelled the call.

    Raises:
        TimeoutError: the call took longer than `timeout` seconds.
        ConnectionError: the library raised an error that is not an `Exception`, e.g. `CancelledError`.
        Exception: the error that the library raised.
    """
    calling = asyncio.create_task(call)
    try:
        await asyncio.wait({calling}, timeout=timeout)
    finally:
        late = not calling.done()
        if late:
            await _cancel(calling)
    # A cancelled call may still return a result. The result is used, because the result may contain messages.
    if late and (not calling.done() or calling.cancelled()):
        raise TimeoutError(f"no answer within {timeout:g} s")
    if calling.cancelled():
        raise ConnectionError("the broker's library cancelled a call of its own")
    error = calling.exception()
    if error is not None and not isinstance(error, Exception):
        raise ConnectionError(f"the broker's library raised {type(error).__name__}")
    return calling.result()


async def _cancel(calling: asyncio.Task[Any]) -> None:
    """Cancel a call, up to `_CANCELS` times. If the call is still running then, log an error and stop waiting."""
    calling.add_done_callback(retrieve_error)
    try:
        for _ in range(_CANCELS):
            calling.cancel()
            await asyncio.wait({calling}, timeout=_UNWIND)
            if calling.done():
                return
    finally:
        if not calling.done():
            text = "a call of the broker's library goes on although it was cancelled: it is left running"
            write_log(logger, logging.ERROR, text)


def retrieve_error(future: asyncio.Future[Any]) -> None:
    """Read the error of a future that is not awaited any more. asyncio would log an error that was never read."""
    if not future.cancelled():
        future.exception()
