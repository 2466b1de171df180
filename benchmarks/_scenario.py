"""The list of scenarios; the rooms that hold them fill it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from _stage import Stage

_Run: TypeAlias = "Callable[..., Awaitable[None]]"
_AnyRun = TypeVar("_AnyRun", bound=_Run)


class Scenario(NamedTuple):
    """A fault, and what is promised under it; `run` must close the client."""

    name: str
    promise: str
    run: Callable[[Stage], Awaitable[None]]


SCENARIOS: list[Scenario] = []


def scenario(name: str, **arguments: Any) -> Callable[[_AnyRun], _AnyRun]:
    """Enter a function into the list, with the first line of its docstring as the promise; may be used repeatedly."""

    def enter(run: _AnyRun) -> _AnyRun:
        promise = (run.__doc__ or "").partition("\n")[0]
        SCENARIOS.append(Scenario(name, promise, functools.partial(run, **arguments)))
        return run

    return enter
