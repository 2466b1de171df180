"""A relay's connection to its broker: whatever the broker's library raises, and however long it hangs, ends here."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import TYPE_CHECKING, Any, cast

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async.relay._address import without_secrets
from retailrocket_async.relay._library_call import answer_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from retailrocket_async.relay._source import Lag, Message, Source

_PATIENCE = 30.0
"""Seconds after which a broker that does not answer counts as lost, whatever its library thinks."""

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 5.0
"""Seconds between two attempts to reach the broker, at first and at most."""

_FAILED = object()

_BURY = "bury"
"""The call that keeps dead letters."""

logger = logging.getLogger("retailrocket_async")


class ReconnectingSource:
    """Asks a source, and keeps account of its failures: told once each, when they begin and when they are over.

    Args:
        source: the source.

    Attributes:
        open: whether the source may be asked for anything but to open.
        failures: calls that failed.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.open = False
        self.failures = 0
        # The calls whose last answer was a failure, and which: that one works again tells nothing of the others.
        self._failing: dict[str, str] = {}
        self._in_a_row = 0
        self._trouble = "not yet"
        self._lost_at = 0.0
        self._bury_at = -math.inf
        self._burials_failed = 0

    @property
    def trouble(self) -> str | None:
        """What is wrong, in one line; None if all is well."""
        if not self._failing:
            return None if self.open else f"the broker is not connected: {self._trouble}"
        if self._failing.keys() == {_BURY}:
            return f"dead letters cannot be kept: {self._failing[_BURY]}"
        return f"the broker is not connected: {self._trouble}"

    @property
    def lease(self) -> float | None:
        """The source's lease in seconds."""
        return self._source.lease

    async def connect(self, pause: Callable[[float], Awaitable[None]]) -> None:
        """Open the source, after a pause that grows with the failures in a row.

        Raises:
            ConfigurationError: what the source finds out when it connects.
        """
        # Dead letters that cannot be kept have a pause of their own, and hold up nothing else.
        if self._in_a_row and self._failing.keys() != {_BURY}:
            await pause(_backoff(self._in_a_row))
        self.open = await self._ask("open", self._source.open()) is not _FAILED

    async def fetch(self, most: int, wait: float) -> Sequence[Message] | None:
        """Fetch; None where that failed."""
        found = await self._ask("fetch", self._source.fetch(most, wait), wait + _PATIENCE)
        return None if found is _FAILED else cast("Sequence[Message]", found)

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> bool:
        """Settle; return whether that is done."""
        return await self._ask("settle", self._source.settle(done, dead)) is not _FAILED

    async def bury(self, dead: Sequence[tuple[Message, str]], *, at_once: bool = False) -> bool:
        """Settle dead messages; return whether that is done. After a failure nothing is asked for some seconds.

        Args:
            dead: the messages, each with its reason.
            at_once: ask now, whatever failed before.
        """
        loop = asyncio.get_running_loop()
        if not at_once and loop.time() < self._bury_at:
            return False
        if await self._ask(_BURY, self._source.settle([], dead)) is not _FAILED:
            self._burials_failed = 0
            return True
        self._burials_failed += 1
        self._bury_at = loop.time() + _backoff(self._burials_failed)
        return False

    async def extend(self, messages: Sequence[Message], patience: float) -> bool:
        """Renew leases within so many seconds; return whether that is done."""
        return await self._ask("extend", self._source.extend(messages), patience) is not _FAILED

    async def release(self, messages: Sequence[Message], patience: float) -> bool:
        """Give messages back within so many seconds; return whether that is done."""
        return await self._ask("release", self._source.release(messages), patience) is not _FAILED

    async def lag(self) -> Lag:
        """Return the lag; raises what the broker's library raises."""
        return cast("Lag", await answer_of(self._source.lag(), _PATIENCE))

    async def aclose(self, patience: float) -> None:
        """Disconnect."""
        await self._ask("aclose", self._source.aclose(), patience)
        self.open = False

    def unneeded(self, call: str) -> None:
        """Note that `call` is not going to be made: that it failed once says nothing of now."""
        self._failing.pop(call, None)
        self._recover()

    async def _ask(self, call: str, question: Coroutine[Any, Any, Any], patience: float = _PATIENCE) -> object:
        try:
            answer = await answer_of(question, patience)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a broker's library raises
            self._fail(call, error)
            return _FAILED
        if self._failing:
            self._failing.pop(call, None)
            self._recover()
        return answer

    def _fail(self, call: str, error: Exception) -> None:
        said = without_secrets(" ".join(str(error).split())) or isinstance(error, TimeoutError) * "no answer in time"
        self._trouble = f"{type(error).__name__}: {said}"[:300]
        self.open = False
        self.failures += 1
        self._in_a_row += 1
        if not self._failing:
            self._lost_at = asyncio.get_running_loop().time()
            write_log(
                logger, logging.WARNING, "the broker is lost, and asked again until it is back: %s", self._trouble
            )
        self._failing[call] = self._trouble

    def _recover(self) -> None:
        if self._in_a_row and not self._failing:
            self._in_a_row = 0
            write_log(
                logger,
                logging.WARNING,
                "the broker is back, after %.1f s",
                asyncio.get_running_loop().time() - self._lost_at,
            )


def _backoff(failures: int) -> float:
    """Return the seconds to pause after so many failures in a row."""
    longest: float = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
