"""Calls a relay's source; logs failures, waits between two attempts to connect, and limits the time of every call."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import TYPE_CHECKING, Any, cast

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async.relay._address import without_secrets
from retailrocket_async.relay._library_call import result_of
from retailrocket_async.relay._source import RecordsSending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from retailrocket_async.relay._source import Lag, Message, Source

_TIMEOUT = 30.0
"""Seconds to wait for an answer. After this time the call has failed, even if the broker's library is still waiting."""

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 5.0
"""Shortest and longest time between two attempts to connect, in seconds."""

_FAILED = object()

_SETTLE_DEAD = "settle_dead"
"""The key under which `ReconnectingSource` records that dead letters cannot be stored."""

logger = logging.getLogger("retailrocket_async")


class ReconnectingSource:
    """Calls a source; turns errors and time-outs into return values, and logs when failures begin and end.

    A `ConfigurationError` of the source is raised, not turned into a return value. `lag` raises all errors.

    Args:
        source: the source.

    Attributes:
        connected: whether the source is connected. If False, call `connect` before any other method.
        failures: number of calls that failed.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._closed = False
        self.connected = False
        self.failures = 0
        # For each method of the source whose last call failed: the method's name and the error. An entry is removed
        # only when a call of the same method succeeds or is not needed any more.
        self._failing: dict[str, str] = {}
        self._failures_in_a_row = 0
        self._last_failure = "not yet"
        self._lost_at = 0.0
        self._settle_dead_at = -math.inf
        self._settle_dead_failures = 0

    @property
    def trouble(self) -> str | None:
        """One line that says what is wrong with the broker, or None if the broker works."""
        if not self._failing:
            return None if self.connected else f"the broker is not connected: {self._last_failure}"
        if self._failing.keys() == {_SETTLE_DEAD}:
            return f"dead letters cannot be kept: {self._failing[_SETTLE_DEAD]}"
        return f"the broker is not connected: {self._last_failure}"

    @property
    def lease(self) -> float | None:
        """The source's lease in seconds."""
        return self._source.lease

    async def connect(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Open the source. After failures, first sleep: the more failures in a row, the longer.

        Args:
            sleep: sleeps for the given number of seconds, or returns earlier if the relay is stopped.

        Raises:
            ConfigurationError: the source finds a wrong setting when it connects.
        """
        # If storing dead letters is the only call that fails, do not sleep here, because `settle_dead` itself leaves 5
        # seconds between two attempts.
        if self._failures_in_a_row and self._failing.keys() != {_SETTLE_DEAD}:
            await sleep(_backoff(self._failures_in_a_row))
        self.connected = await self._call("open", self._source.open()) is not _FAILED

    async def fetch(self, most: int, wait: float) -> Sequence[Message] | None:
        """Return up to `most` messages, or an empty sequence if no message arrives within `wait` seconds.

        If the call fails, return None.
        """
        found = await self._call("fetch", self._source.fetch(most, wait), wait + _TIMEOUT)
        return None if found is _FAILED else cast("Sequence[Message]", found)

    async def settle(self, done: Sequence[Message]) -> bool:
        """Acknowledge messages; return whether the broker has confirmed the acknowledgement."""
        return await self._call("settle", self._source.settle(done, [])) is not _FAILED

    async def settle_dead(self, dead: Sequence[tuple[Message, str]], *, at_once: bool = False) -> bool:
        """Store messages as dead letters; return whether the broker has confirmed that the letters are stored.

        After a failure this method returns False without calling the broker, for up to 5 seconds.

        Args:
            dead: the messages, each with its reason.
            at_once: call the broker even if these seconds have not passed.
        """
        loop = asyncio.get_running_loop()
        if not at_once and loop.time() < self._settle_dead_at:
            return False
        if await self._call(_SETTLE_DEAD, self._source.settle([], dead)) is not _FAILED:
            self._settle_dead_failures = 0
            return True
        self._settle_dead_failures += 1
        self._settle_dead_at = loop.time() + _backoff(self._settle_dead_failures)
        return False

    async def extend(self, messages: Sequence[Message], timeout: float) -> bool:  # noqa: ASYNC109 - it limits foreign code
        """Extend the leases of messages; return False if the call fails or takes longer than `timeout` seconds."""
        return await self._call("extend", self._source.extend(messages), timeout) is not _FAILED

    @property
    def records_sending(self) -> bool:
        """Whether the source has to be told which messages are about to be sent; see `RecordsSending`."""
        return isinstance(self._source, RecordsSending)

    async def record_sending(self, messages: Sequence[Message]) -> Sequence[Message] | None:
        """Record that messages are about to be sent; return those that may be sent, or None if the call failed."""
        if not isinstance(self._source, RecordsSending):
            return messages
        found = await self._call("record_sending", self._source.record_sending(messages))
        return None if found is _FAILED else cast("Sequence[Message]", found)

    async def release(self, messages: Sequence[Message], timeout: float) -> bool:  # noqa: ASYNC109 - the same
        """Return messages to the broker; return False if the call fails or takes longer than `timeout` seconds."""
        return await self._call("release", self._source.release(messages), timeout) is not _FAILED

    async def lag(self) -> Lag:
        """Return how many messages are not settled yet.

        Raises:
            Exception: an error of the broker's library.
            ConnectionError: the source is closed.
        """
        if self._closed:
            # The broker's library might connect again to read the lag, and nothing would close the new connection.
            raise ConnectionError("the relay has ended, and is not connected to its broker")
        return cast("Lag", await result_of(self._source.lag(), _TIMEOUT))

    async def aclose(self, timeout: float) -> None:  # noqa: ASYNC109 - the same
        """Disconnect; stop waiting after `timeout` seconds."""
        self._closed = True
        await self._call("aclose", self._source.aclose(), timeout)
        self.connected = False

    def skipped(self, call: str) -> None:
        """Forget an earlier failure of the method named `call`, because no call of this method is needed now."""
        self._failing.pop(call, None)
        self._check_recovered()

    async def _call(self, name: str, call: Coroutine[Any, Any, Any], timeout: float = _TIMEOUT) -> object:  # noqa: ASYNC109 - the same
        try:
            result = await result_of(call, timeout)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a broker's library raises anything
            self._fail(name, error)
            return _FAILED
        if self._failing:
            self._failing.pop(name, None)
            self._check_recovered()
        return result

    def _fail(self, name: str, error: Exception) -> None:
        text = without_secrets(" ".join(str(error).split())) or isinstance(error, TimeoutError) * "no answer in time"
        self._last_failure = f"{type(error).__name__}: {text}"[:300]
        self.connected = False
        self.failures += 1
        self._failures_in_a_row += 1
        if not self._failing:
            self._lost_at = asyncio.get_running_loop().time()
            text = "the broker is lost, and called again until it is back: %s"
            write_log(logger, logging.WARNING, text, self._last_failure)
        self._failing[name] = self._last_failure

    def _check_recovered(self) -> None:
        if self._failures_in_a_row and not self._failing:
            self._failures_in_a_row = 0
            seconds = asyncio.get_running_loop().time() - self._lost_at
            write_log(logger, logging.WARNING, "the broker is back, after %.1f s", seconds)


def _backoff(failures: int) -> float:
    """Return how many seconds to wait after `failures` failures in a row."""
    longest: float = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
