"""Sets the result of a future that may be done already, for example because its waiter was cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def set_result(future: asyncio.Future[T], result: T) -> None:
    """Set the result of a future, unless the future is done."""
    if not future.done():
        future.set_result(result)


def set_done(future: asyncio.Future[None]) -> None:
    """Set the result of a future to None, which wakes the waiting task, unless the future is done."""
    if not future.done():
        future.set_result(None)


def set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    """Set the exception of a future, unless the future is done."""
    if not future.done():
        future.set_exception(error)
