"""Wraps the client object of a broker's library so that a chosen call of the client fails.

`Faults` counts the calls to the wrapped client. A test chooses the number of a call that fails, and whether all later
calls fail as well. The call fails either before it does anything, or after it has done its work, as if the broker's
answer were lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Broken(BaseException):
    """An error that is not an `Exception`, so that `except Exception` does not catch it."""


class Faults:
    """Counts the calls of a library, and makes a chosen call fail.

    Attributes:
        calls: the number of calls so far.
        names: the names of the called functions, in order.
        failed: the number of calls that failed.
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
        """Make one of the next calls fail. The count of calls starts again at 0.

        Args:
            at: the number of the call that fails; the next call has number 0.
            error: returns the error that the call raises.
            permanent: whether all later calls fail as well.
            late: whether the calls fail after they have done their work, and not before.
        """
        self.calls, self.names, self.failed = 0, [], 0
        self._at, self._permanent, self._late, self._error = at, permanent, late, error

    def disarm(self) -> None:
        """Let all further calls succeed."""
        self._at = None

    def _fails(self, name: str) -> bool:
        number, self.calls = self.calls, self.calls + 1
        self.names.append(name)
        fails = self._at is not None and (number == self._at or (self._permanent and number > self._at))
        self.failed += fails
        return fails

    async def call(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call `function`, or raise the error if this call is chosen to fail."""
        fails = self._fails(name)
        # A failing `stop` must do its work, because the client would otherwise stay a member of its consumer group
        # for ever.
        if fails and not self._late and name != "stop":
            raise self._error()
        answer = await function(*arguments, **options)
        if fails:
            raise self._error()
        return answer


class Wrapped:
    """Wraps an object of a library so that calls of the named coroutine functions may fail.

    Other attributes are those of the wrapped object.

    Args:
        inner: the wrapped object.
        faults: decides which call fails.
        names: maps the name of each function to a function that wraps its result, or to None.
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
"""Errors by name: an ordinary error, a `CancelledError` of the library, an error that is not an `Exception`."""
