"""The list of fault scenarios; the other modules of this package add scenarios to it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from acceptance.faults.testbed import Testbed

_Run: TypeAlias = "Callable[..., Awaitable[None]]"
_AnyRun = TypeVar("_AnyRun", bound=_Run)


class Scenario(NamedTuple):
    """A function that causes a fault, and the promise that the client must keep in spite of this fault.

    Attributes:
        name: the name of the scenario on the command line.
        promise: the promise in one sentence.
        run: the function that runs the scenario; it must close the client.
    """

    name: str
    promise: str
    run: Callable[[Testbed], Awaitable[None]]


SCENARIOS: list[Scenario] = []


def scenario(name: str, **arguments: Any) -> Callable[[_AnyRun], _AnyRun]:
    """Add a function to the list of scenarios; the first line of its docstring is the promise.

    A function may be decorated several times, each time with other arguments.
    """

    def add(run: _AnyRun) -> _AnyRun:
        promise = (run.__doc__ or "").partition("\n")[0]
        SCENARIOS.append(Scenario(name, promise, functools.partial(run, **arguments)))
        return run

    return add
