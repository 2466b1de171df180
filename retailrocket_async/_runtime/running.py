"""Finds the event loop and the task that run in this thread, if any."""

from __future__ import annotations

import asyncio
from typing import Any


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None if no loop runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def running_task() -> asyncio.Task[Any] | None:
    """Return the task that runs in this thread, or None if no task runs."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
