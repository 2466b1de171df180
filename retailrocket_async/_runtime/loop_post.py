"""Posts calls to an event loop that may be closed, from any thread."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable


def post(loop: AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Have an event loop call a function soon. Do nothing if the loop is closed: a closed loop has no waiting task."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)
