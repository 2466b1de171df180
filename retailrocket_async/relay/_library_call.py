"""One call of a broker's library, which may swallow a cancellation, raise anything, or never end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from retailrocket_async._runtime.foreign_code import write_log

if TYPE_CHECKING:
    from collections.abc import Coroutine

_UNWIND = 1.0
"""Seconds that a cancelled call has to end, before it is cancelled once more."""

_CANCELS = 3
"""How often a call is cancelled, as a library may swallow the first cancellation and wait for something else."""

logger = logging.getLogger("retailrocket_async")


async def answer_of(question: Coroutine[Any, Any, Any], patience: float) -> object:
    """Return what a call of a broker's library returns.

    The call has a task of its own. So a library that swallows a cancellation cannot keep the relay, and one that raises
    `CancelledError` although nobody was cancelled does not end the relay.

    Raises:
        TimeoutError: the call took longer than `patience` seconds.
        ConnectionError: the library raised something that is no `Exception`.
        Exception: what the library raised.
    """
    asking = asyncio.create_task(question)
    try:
        await asyncio.wait({asking}, timeout=patience)
    finally:
        late = not asking.done()
        if late:
            await _cancel(asking)
    # What came after all is an answer: messages may be in it.
    if late and (not asking.done() or asking.cancelled()):
        raise TimeoutError(f"no answer within {patience:g} s")
    if asking.cancelled():
        raise ConnectionError("the broker's library cancelled a call of its own")
    error = asking.exception()
    if error is not None and not isinstance(error, Exception):
        raise ConnectionError(f"the broker's library raised {type(error).__name__}")
    return asking.result()


async def _cancel(asking: asyncio.Task[Any]) -> None:
    """Cancel a call until it ends, or leave it behind."""
    asking.add_done_callback(_seen)
    try:
        for _ in range(_CANCELS):
            asking.cancel()
            await asyncio.wait({asking}, timeout=_UNWIND)
            if asking.done():
                return
    finally:
        if not asking.done():
            write_log(
                logger,
                logging.ERROR,
                "a call of the broker's library goes on although it was cancelled: it is left behind",
            )


def _seen(asking: asyncio.Task[Any]) -> None:
    """Look at the failure of a call that nobody waits for any more."""
    if not asking.cancelled():
        asking.exception()
