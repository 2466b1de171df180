"""Wraps clients of brokers' libraries so that one of their calls fails.

`Faults` counts the calls that go through it. A test arms the call with a certain number: it fails once, or all later
calls fail, too. It fails before it does anything, or after it has done its work, as if its answer were lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Broken(BaseException):
    """An error that is no `Exception`."""


class Faults:
    """Counts the calls of a library, and makes one of them fail.

    Attributes:
        calls: how many calls there were.
        names: their names, in order.
        failed: how many of them failed.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.names: list[str] = []
        self.failed = 0
        self._at: int | None = None
        self._permanent = False
        self._late = False
        self._error: Callable[[], BaseException] = OSError

    def arm(self, at: int, error: Callable[[], BaseException], *, permanent: bool = False, late: bool = False) -> None:
        """Make a call fail; calls are counted from 0 from now on.

        Args:
            at: the number of the call.
            error: returns the error that it raises.
            permanent: whether all calls after it fail as well.
            late: whether they fail after they have done their work.
        """
        self.calls, self.names, self.failed = 0, [], 0
        self._at, self._permanent, self._late, self._error = at, permanent, late, error

    def disarm(self) -> None:
        """Make no call fail any more."""
        self._at = None

    def _fails(self, name: str) -> bool:
        number, self.calls = self.calls, self.calls + 1
        self.names.append(name)
        fails = self._at is not None and (number == self._at or (self._permanent and number > self._at))
        self.failed += fails
        return fails

    async def call(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a call, or fail."""
        fails = self._fails(name)
        # A failing `stop` stops all the same, or the client would stay a member of its group for ever.
        if fails and not self._late and name != "stop":
            raise self._error()
        answer = await function(*arguments, **options)
        if fails:
            raise self._error()
        return answer


class Wrapped:
    """An object of a library whose named coroutine functions go through `Faults`; other attributes are unchanged.

    Args:
        inner: the object.
        faults: decides which call fails.
        names: the functions, each with a function that wraps its result, or None.
    """

    def __init__(self, inner: Any, faults: Faults, names: dict[str, Callable[[Any], Any] | None]) -> None:
        self._inner = inner
        self._faults = faults
        self._names = names

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in self._names:
            return attribute
        wrap = self._names[name]

        async def call(*arguments: Any, **options: Any) -> Any:
            answer = await self._faults.call(name, attribute, *arguments, **options)
            return answer if wrap is None else wrap(answer)

        return call


ERRORS: dict[str, Callable[[], BaseException]] = {
    "OSError": lambda: OSError("broken"),
    "CancelledError": asyncio.CancelledError,
    "BaseException": Broken,
}
"""Errors by name: an ordinary failure, a `CancelledError` of the library itself, an error that is no `Exception`."""
