"""Calls a broker's library, which may swallow a cancellation, raise anything, or never return."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from retailrocket_async._runtime.foreign_code import write_log

if TYPE_CHECKING:
    from collections.abc import Coroutine

_UNWIND = 1.0
"""Seconds that a cancelled call has to end before it is cancelled again."""

_CANCELS = 3
"""How often a call is cancelled: a library may swallow the first cancellation and wait for something else."""

logger = logging.getLogger("retailrocket_async")


async def result_of(call: Coroutine[Any, Any, Any], timeout: float) -> object:  # noqa: ASYNC109 - see below
    """Return what a call of a broker's library returns, or raise within `timeout` seconds and a few more.

    The call has a task of its own. So a library that swallows a cancellation cannot keep the relay waiting, and a
    library that raises `CancelledError` without a cancellation does not end the relay.

    Raises:
        TimeoutError: the call took longer than `timeout` seconds.
        ConnectionError: the library raised an error that is no `Exception`.
        Exception: what the library raised.
    """
    calling = asyncio.create_task(call)
    try:
        await asyncio.wait({calling}, timeout=timeout)
    finally:
        late = not calling.done()
        if late:
            await _cancel(calling)
    # A result that came late is still a result: it may hold messages.
    if late and (not calling.done() or calling.cancelled()):
        raise TimeoutError(f"no answer within {timeout:g} s")
    if calling.cancelled():
        raise ConnectionError("the broker's library cancelled a call of its own")
    error = calling.exception()
    if error is not None and not isinstance(error, Exception):
        raise ConnectionError(f"the broker's library raised {type(error).__name__}")
    return calling.result()


async def _cancel(calling: asyncio.Task[Any]) -> None:
    """Cancel a call until it ends; after some attempts leave it running."""
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
    """Retrieve the error of a future that nobody awaits any more, or asyncio would log it."""
    if not future.cancelled():
        future.exception()
