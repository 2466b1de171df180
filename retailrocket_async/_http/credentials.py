"""The shop's key and id: where they come from, and the query string they make.

The key may be changed by Retail Rocket at any time, and the old one then stops working (contract, "Requests"). So it
may be given as a function, which is asked before the first request and again when the API refuses the key.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from urllib.parse import urlencode

from retailrocket_async._errors import ConfigurationError, UncopyableError, type_name
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import must_pass
from retailrocket_async._runtime.setting_text import text_complaint
from retailrocket_async._runtime.thread_call import call_in_thread, sealed_call

if TYPE_CHECKING:
    from asyncio import Task

ApiKey: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""The key itself, or a function that returns it; one that is no coroutine function is called in a thread."""

ASK_SECONDS: Final = 10.0
"""How long a function may take to return the key."""


class Credentials:
    """The shop's key and id, as the query string that every request carries; prints neither key nor query.

    Args:
        api_key: the key, or a function that returns it.
        partner_id: the shop's public id.

    Attributes:
        partner_id: the shop's public id.
        serial: how many different keys there have been, 0 before the first; tells which one a request carried.
        renewable: whether the key can change, being a function's.

    Raises:
        ConfigurationError: `api_key` is neither a function nor a str, or one of the two is empty or holds white space
            or control characters (a key read from a file often ends in a newline).
    """

    __slots__ = ("_ask", "_asking", "_calling", "_query", "partner_id", "renewable", "serial")

    def __init__(self, api_key: ApiKey, partner_id: str) -> None:
        complaint = (None if callable(api_key) else _complaint("api_key", api_key)) or _complaint(
            "partner_id", partner_id
        )
        if complaint:
            # The frame of an error is kept with it, and some tools print its variables.
            del api_key, partner_id
            raise ConfigurationError(complaint)
        self.partner_id = partner_id
        self.serial = 0
        # A function, as printers of attributes do not look into one.
        self._query: Callable[[], bytes] = bytes
        self._ask: Callable[[], Callable[[], object]] | None = None
        self._asking: Task[str | None] | None = None
        self._calling: Task[Callable[[], object]] | None = None
        self.renewable = callable(api_key)
        if callable(api_key):
            # A `functools.partial` prints its arguments.
            self._ask = lambda: api_key
        else:
            self._take(api_key)

    def target(self, path: bytes) -> bytes:
        """Return the request target: `path` and the query string."""
        return path + b"?" + self._query()

    async def ready(self) -> str | None:
        """Ask for the key where there is none yet; return the name of what went wrong, or None."""
        return None if self.serial else await self._asked()

    async def renew(self, serial: int) -> tuple[bool, str | None]:
        """Ask for the key again, unless it has changed since the one of `serial`.

        Returns whether the key is another one now, and the name of what went wrong, if anything did.
        """
        if self.serial != serial:
            return True, None
        if self._ask is None:
            return False, None
        failure = await self._asked()
        return self.serial != serial, failure

    def close(self) -> None:
        """Stop asking."""
        for task in (self._asking, self._calling):
            if task is not None:
                task.cancel()

    async def _asked(self) -> str | None:
        """Ask, once for all who want to know; return the name of what went wrong, or None."""
        if self._asking is None or self._asking.done():
            self._asking = detached(asyncio.create_task, self._ask_now())
        asking = self._asking
        # A caller that is cancelled leaves the answer to the others.
        await asyncio.wait({asking})
        if asking.cancelled():
            # Some shutdowns cancel every task: the one that asked is not the one that waits.
            return asyncio.CancelledError.__name__
        # What must pass, such as Ctrl-C, has passed once.
        error = asking.exception()
        return asking.result() if error is None else type(error).__name__

    async def _ask_now(self) -> str | None:
        # Nothing of what is raised or returned here may leave: both may hold a key.
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                self._take(await self._called(cast("Callable[[], Callable[[], object]]", self._ask)()))
        except BaseException as error:  # a user's function may raise anything
            if must_pass(error, task):
                raise
            return type(error).__name__
        return None

    async def _called(self, ask: Callable[[], object]) -> object:
        if inspect.iscoroutinefunction(ask):
            return await ask()
        # A thread cannot be cancelled: where the last call has not come back, its answer is waited for again, or each
        # question to a function that hangs would leave one more thread.
        if self._calling is None:
            self._calling = detached(asyncio.create_task, call_in_thread(sealed_call(ask)))
            self._calling.add_done_callback(self._came_back)
        answer = (await asyncio.shield(self._calling))()
        return await answer if inspect.isawaitable(answer) else answer

    def _came_back(self, calling: Task[Callable[[], object]]) -> None:
        self._calling = None
        if not calling.cancelled():
            # Looked at, or asyncio would log it where nobody waits any more.
            calling.exception()

    def _take(self, api_key: object) -> None:
        complaint = _complaint("api_key", api_key)
        if complaint:
            del api_key
            raise ConfigurationError(complaint)
        query = urlencode({"apiKey": api_key, "partnerId": self.partner_id}).encode("ascii")
        if query != self._query():
            self._query = lambda: query
            self.serial += 1

    def __repr__(self) -> str:
        return f"Credentials(api_key='***', partner_id={getattr(self, 'partner_id', None)!r})"

    def __reduce__(self) -> str:
        raise UncopyableError("Credentials cannot be copied or pickled: the key would be written out")


def _complaint(name: str, value: object) -> str | None:
    # A subclass may print, or be encoded, as something else.
    if isinstance(value, str) and type(value) is not str:
        return f"{name} must be a plain str, not {type_name(value)}"
    return text_complaint(name, value)
