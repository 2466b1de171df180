"""A user's function, which may raise anything, called without anybody printing what came of it.

A task prints what it waits for, and a future prints what it holds, result or error: in asyncio's debug log, in the
stacks of tasks. That may be a key, or an error that tells of a visitor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def veiled(function: Callable[..., _T], *arguments: object) -> Callable[[], Callable[[], _T]]:
    """Return what a thread is to call: it calls `function`, and returns one that returns, or raises, the same.

    The error comes without its traceback, whose frames have variables.
    """

    def call() -> Callable[[], _T]:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            # Not by the error's own method, which may be anybody's.
            raised = BaseException.with_traceback(error, None)
            return lambda: _raise(raised)
        return lambda: result

    return call


def _raise(error: BaseException) -> NoReturn:
    raise error
