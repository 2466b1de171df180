"""Stores the shop's key and id, and makes the query string from key and id.

Retail Rocket may change the key at any time, and the old key then stops working (contract, "Requests"). So the user may
pass a function that returns the key. The function is called before the first request, and again when the API refuses
the key.
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
from retailrocket_async._runtime.thread_call import call_in_thread, captured_call

if TYPE_CHECKING:
    from asyncio import Task

ApiKey: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""The key, or a function that returns the key; a function that is not a coroutine function is called in a thread."""

ASK_SECONDS: Final = 10.0
"""Seconds within which the function must return the key."""


class Credentials:
    """Stores the shop's key and id, and makes the query string of every request. The repr does not show the key.

    Args:
        api_key: the key, or a function that returns the key.
        partner_id: the shop's public id.

    Attributes:
        partner_id: the shop's public id.
        serial: the number of the present key: 1 for the first key, one more for each different key; 0 without a key.
        renewable: whether the key can change, because `api_key` is a function.

    Raises:
        ConfigurationError: `api_key` is neither a function nor a str, or `api_key` or `partner_id` is empty or contains
            white space or control characters (a key read from a file often ends in a newline).
    """

    __slots__ = ("_ask", "_asking", "_calling", "_query", "partner_id", "renewable", "serial")

    def __init__(self, api_key: ApiKey, partner_id: str) -> None:
        complaint = (None if callable(api_key) else _complaint("api_key", api_key)) or _complaint(
            "partner_id", partner_id
        )
        if complaint:
            # The error's traceback refers to this frame, and some tools print the variables of frames.
            del api_key, partner_id
            raise ConfigurationError(complaint)
        self.partner_id = partner_id
        self.serial = 0
        # The query is hidden in a function, because tools that print attributes do not look inside functions.
        self._query: Callable[[], bytes] = bytes
        self._ask: Callable[[], Callable[[], object]] | None = None
        self._asking: Task[str | None] | None = None
        self._calling: Task[Callable[[], object]] | None = None
        self.renewable = callable(api_key)
        if callable(api_key):
            # The user's function is stored inside another function: if it is a `functools.partial`, a tool that prints
            # attributes would print the arguments of the `partial`, which may be secret.
            self._ask = lambda: api_key
        else:
            self._take(api_key)

    def target(self, path: bytes) -> bytes:
        """Return the request target: `path` and the query string."""
        return path + b"?" + self._query()

    async def ready(self) -> str | None:
        """Get the first key, if there is no key yet.

        Returns the name of the error if getting the key failed, otherwise None.
        """
        return None if self.serial else await self._asked()

    async def renew(self, serial: int) -> tuple[bool, str | None]:
        """Get the key again, unless the key has changed since the request that used the key number `serial`.

        Returns two values: whether the key has changed since that request; and the name of the error if getting the key
        failed, otherwise None.
        """
        if self.serial != serial:
            return True, None
        if self._ask is None:
            return False, None
        failure = await self._asked()
        return self.serial != serial, failure

    def close(self) -> None:
        """Cancel the call of the function that returns the key, if such a call is running."""
        for task in (self._asking, self._calling):
            if task is not None:
                task.cancel()

    async def _asked(self) -> str | None:
        """Call the function that returns the key. Callers that come meanwhile wait for the same call.

        Returns the name of the error if the call failed, otherwise None.
        """
        if self._asking is None or self._asking.done():
            self._asking = detached(asyncio.create_task, self._ask_now())
        asking = self._asking
        # `asyncio.wait` does not cancel the task. So if one caller is cancelled, the other callers still get the key.
        await asyncio.wait({asking})
        if asking.cancelled():
            # Some shutdowns cancel every task, including the task that calls the function.
            return asyncio.CancelledError.__name__
        # An error such as Ctrl-C has been raised in the other task, so only the name of the error is returned here.
        error = asking.exception()
        return asking.result() if error is None else type(error).__name__

    async def _ask_now(self) -> str | None:
        # Neither an error nor a result of the user's function may leave this method, because both may contain a key.
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
        # A thread cannot be cancelled. So if an earlier call has not returned yet, wait for that call and do not start
        # another one. Otherwise a function that hangs would block one more thread each time.
        if self._calling is None:
            self._calling = detached(asyncio.create_task, call_in_thread(captured_call(ask)))
            self._calling.add_done_callback(self._call_ended)
        answer = (await asyncio.shield(self._calling))()
        return await answer if inspect.isawaitable(answer) else answer

    def _call_ended(self, calling: Task[Callable[[], object]]) -> None:
        self._calling = None
        if not calling.cancelled():
            # Retrieve the error, because asyncio would otherwise log the error if no caller waits any more.
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
    # Refuse subclasses of str, because the text of such an object may change when it is printed or encoded.
    if isinstance(value, str) and type(value) is not str:
        return f"{name} must be a plain str, not {type_name(value)}"
    return text_complaint(name, value)
