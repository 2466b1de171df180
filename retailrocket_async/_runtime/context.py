"""Starts tasks, timers and threads in an empty context.

Tasks, timers and callbacks store a copy of the context in which they are created. The caller's context may contain the
objects of one visitor's request. So work that outlives a call must not store the caller's context, and hooks must not
see that context.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

P = ParamSpec("P")
T = TypeVar("T")


def detached(start: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `start` in an empty context, and return what `start` returns.

    A task, timer or thread that `start` creates then does not store the caller's context.
    """
    return Context().run(start, *args, **kwargs)


@asynccontextmanager
async def timeout_at(when: float | None) -> AsyncGenerator[None]:
    """Limit the time of a block, as `asyncio.timeout_at` does, but without storing the caller's context until `when`.

    Args:
        when: the deadline (loop time); None for no deadline.

    Raises:
        TimeoutError: the deadline has passed.
    """
    async with asyncio.timeout(None) as deadline:
        if when is not None:
            detached(deadline.reschedule, when)
        yield


@contextmanager
def changes_of(context: Context, since: Context) -> Generator[None]:
    """Repeat, for the time of the block, the changes that some code has made to context variables in another context.

    Args:
        context: the context in which the code has run.
        since: a copy of `context` from before the code ran.
    """
    changed = [(variable, value) for variable, value in context.items() if _differs(since, variable, value)]
    tokens = [(variable, variable.set(value)) for variable, value in changed]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def _differs(since: Context, variable: object, value: object) -> bool:
    return variable not in since or since[variable] is not value  # type: ignore[index]
