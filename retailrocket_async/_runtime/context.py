"""In which context the client's own work runs: in an empty one.

Tasks, timers and callbacks keep a copy of the context in which they are created. The caller's context may hold the
objects of one visitor's request, so what outlives the caller's line must neither keep that context nor show it to the
hooks that run there.
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
    """Call `start` in an empty context, so that the task, timer or thread that it starts keeps none of its caller's."""
    return Context().run(start, *args, **kwargs)


@asynccontextmanager
async def timeout_at(when: float | None) -> AsyncGenerator[None]:
    """As `asyncio.timeout_at`, whose timer would keep the caller's context until `when`, though it is cancelled.

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
    """Set the variables, in the current context and for the block, that `context` has and `since` has not.

    Args:
        context: a context in which code has run.
        since: a copy of it from before.
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
