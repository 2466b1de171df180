"""The relay: takes messages from a broker, delivers their events, and settles the messages that have an outcome.

`Window` holds the messages and their states; this module does all that waits. A message leaves the window only when the
broker has confirmed that it is settled. So whatever ends the relay, the broker still has every message whose event was
not delivered. An event that was delivered and not yet settled is delivered twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING

from retailrocket_async import BufferFullError, ClientClosedError, ConfigurationError, UsageError
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._reconnecting_source import ReconnectingSource
from retailrocket_async.relay._timestamp import Timestamps
from retailrocket_async.relay._window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async import AsyncTrackingClient
    from retailrocket_async.relay._source import Lag, Source
    from retailrocket_async.relay._stats import RelayStats

BATCH = 500
WINDOW = 6_000
WINDOW_BYTES = 16 * 1024 * 1024
GRACE = 25.0

_IDLE = 0.5
"""Seconds a fetch may wait if no outcome is awaited."""

_BUSY = 0.05
"""Seconds until outcomes are looked at again while some are awaited."""

_RETRY = 1.0
"""Seconds between two attempts to track held messages, if the client refuses events instead of waiting."""

_TRACKED = 500
"""Messages that are passed to the client in one call; other tasks run between two calls."""

_HEARTBEAT = 20.0
"""Seconds between two calls of `extend` for a broker without leases."""

_END = 5.0
"""Seconds for the last settling, and again for disconnecting, after the grace.

With the default grace the relay then ends within the 30 s that process managers commonly give, unless the broker fails
at that moment.
"""

logger = logging.getLogger("retailrocket_async")


class Relay(Uncopyable):
    """Delivers the events that others publish to a broker, each at least once.

    A message is acknowledged when its event has an outcome: delivered ones are done, refused and unreadable ones become
    dead letters. While the API is down, or the key is refused, the relay holds what it has fetched and fetches no more.

    Args:
        source: the broker; opened and closed by the relay.
        client: delivers the events. Only the relay uses it, and closes it. Give it ``RetryPolicy(outlast=True)``, or
            an outage makes dead letters.
        batch: messages in one fetch, 1 or more; default 500.
        window: messages that may be handed out and not settled, `batch` or more; default 6,000, enough for 4,000
            events a second at 1.5 s a batch. A smaller window starves the client. After a crash at most one window is
            delivered twice.
        window_bytes: bytes of these messages after which no more are fetched, 1 or more; default 16 MiB. The last fetch
            may exceed it.
        grace: seconds, 0 or more, for delivering what was fetched once `stop` was called; default 25.
        allow_custom: deliver events of unknown names, too; default False: they become dead letters.
        trouble: returns one more reason why nothing can be delivered, in one line, e.g. that a limiter was never
            reached, or None. `unready` calls it. It must not block, nor raise. Default None: there is no such function.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        source: Source,
        client: AsyncTrackingClient,
        *,
        batch: int = BATCH,
        window: int = WINDOW,
        window_bytes: int = WINDOW_BYTES,
        grace: float = GRACE,
        allow_custom: bool = False,
        trouble: Callable[[], str | None] | None = None,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("window", window, batch), ("window_bytes", window_bytes, 1)):
            if type(value) is not int or value < least:
                raise ConfigurationError(f"{name} must be an int of {least} or more, not {value!r}")
        if type(grace) not in (int, float) or not 0 <= grace < math.inf:
            raise ConfigurationError(f"grace must be a number of seconds, 0 or more, not {grace!r}")
        self._source = ReconnectingSource(source)
        self._client = client
        self._batch = batch
        self._grace = grace
        self._allow_custom = allow_custom
        self._other_trouble = trouble
        self._timestamps = Timestamps(allow_custom=allow_custom)
        self._window = Window(window, window_bytes)
        self._stopping = asyncio.Event()
        self._ran = False

    async def run(self) -> bool:
        """Deliver until `stop` is called or this call is cancelled; then settle, give back, and close.

        At the end nothing more is fetched. What was fetched has `grace` seconds to be delivered (none after a
        cancellation). Messages with an outcome are settled, the others are given back to the broker, and client and
        source are closed.

        Returns:
            Whether all messages with an outcome are settled. False if the broker failed at the end: it hands some of
            them out again, and their events are delivered again.

        Raises:
            ConfigurationError: a mistake that the source finds when it connects, e.g. that a stream's name is taken.
            UsageError: the relay has run before.
        """
        if self._ran:
            raise UsageError("a relay runs once: make another one")
        self._ran = True
        working = asyncio.create_task(self._work())
        extending = asyncio.create_task(self._keep_leases())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            await self._client.aclose(self._grace)
        finally:
            self._stopping.set()
            try:
                await self._end(working, extending)
            finally:
                for task in (working, extending, stopped):
                    task.cancel()
                await asyncio.wait({working, extending, stopped}, timeout=_END)
        if working.done() and not working.cancelled():
            working.result()
        unsettled = self._window.unsettled
        if unsettled:
            text = "%d messages could not be settled at the end, and will be delivered again"
            write_log(logger, logging.ERROR, text, unsettled)
        return not unsettled

    def stop(self) -> None:
        """Have `run` come to its end; call it in the event loop."""
        self._stopping.set()

    @property
    def unready(self) -> str | None:
        """Why nothing is being delivered, in one line, for a readiness probe; None if all is well.

        An outage of the API is no such reason, as another relay would deliver nothing either.
        """
        if self._stopping.is_set():
            return "stopping"
        if (trouble := self._source.trouble) is not None:
            return trouble
        if self._client.stats().state == "halted":
            return "sending is halted: the log says what to correct"
        return None if self._other_trouble is None else self._other_trouble()

    def stats(self) -> RelayStats:
        """Return a snapshot of the counters; never blocks."""
        return self._window.stats(broker_failures=self._source.failures, connected=self._source.trouble is None)

    async def lag(self) -> Lag:
        """Return how far the relay is behind, as the broker reports it.

        Raises:
            Exception: whatever the broker's library raises.
            ConnectionError: the relay has ended.
        """
        return await self._source.lag()

    # --- while it runs ---

    async def _work(self) -> None:
        """Fetch, track and settle, until the relay is stopped and nothing is left to settle."""
        window = self._window
        while window.open or window.unsettled or not self._stopping.is_set():
            window.sweep()
            if not await self._exchange():
                continue
            if window.held and self._may_track():
                await self._track()
            elif window.open and not self._may_fetch():
                await self._wait_for_outcomes()
            elif window.dead and not self._may_fetch():
                await self._sleep(_BUSY)

    async def _exchange(self) -> bool:
        """Connect, settle and fetch, as far as needed; return whether the broker answered."""
        if not self._source.connected:
            await self._source.connect(self._sleep)
            if not self._source.connected:
                return False
        if not await self._settle():
            return False
        if self._may_fetch():
            return await self._fetch()
        self._source.skipped("fetch")
        return True

    def _may_track(self) -> bool:
        """Return whether events may go to the client.

        They may if the client sends, or if nothing is open: then only another event can show that the API is back.
        """
        return not self._stopping.is_set() and (not self._window.open or self._client.stats().state == "sending")

    def _may_fetch(self) -> bool:
        return not self._window.held and self._window.has_room(self._batch) and self._may_track()

    async def _fetch(self) -> bool:
        """Fetch as much as there is room for; return whether the broker answered."""
        wait = _BUSY if self._window.open else _IDLE
        messages = await self._source.fetch(min(self._batch, self._window.room), wait)
        if messages is None:
            return False
        self._window.add(messages)
        return True

    async def _track(self) -> None:
        """Pass the held messages to the client."""
        window = self._window
        if self._client.stats().state != "sending":
            # A halted client may refuse the events without a delay.
            await self._sleep(_RETRY)
        try:
            while window.held:
                envelopes = [self._timestamps.envelope_of(message) for message in window.first_held(_TRACKED)]
                window.tracked(await self._client.track_envelopes(envelopes, allow_custom=self._allow_custom))
        except BufferFullError:
            # The client's buffer is set to raise instead of waiting.
            await self._sleep(_BUSY)
        except ClientClosedError:
            # The end has begun: what is held is given back.
            return

    async def _settle(self, *, at_end: bool = False) -> bool:
        """Settle the messages that have an outcome; return whether the broker may be asked for more.

        Dead letters that the broker cannot keep stay in the window, and later messages are delivered meanwhile.
        """
        window = self._window
        if not window.done:
            self._source.skipped("settle")
        elif await self._source.settle(window.done):
            window.done_settled()
        else:
            return False
        if not window.dead:
            self._source.skipped("settle_dead")
        elif await self._source.settle_dead(window.dead, at_once=at_end):
            window.dead_settled()
        return True

    async def _wait_for_outcomes(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_BUSY):
                await self._window.open[0][1]

    async def _sleep(self, seconds: float) -> None:
        """Sleep until the relay is stopped; if it already is, for half a second at most."""
        if self._stopping.is_set():
            await asyncio.sleep(min(seconds, _IDLE))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _keep_leases(self) -> None:
        """Extend the leases of all messages in the window, again and again."""
        lease = self._source.lease
        beat = _HEARTBEAT if lease is None else lease / 3
        while True:
            # Sooner after a failure, as the leases may be about to end.
            await asyncio.sleep(beat if self._source.trouble is None else min(beat, 1.0))
            if self._source.connected:
                await self._source.extend(self._window.messages(), max(1.0, beat))

    # --- at the end ---

    async def _end(self, working: asyncio.Task[None], extending: asyncio.Task[None]) -> None:
        """Give every event an outcome now, settle the messages, give the rest back, and disconnect."""
        try:
            # If the client is closed already, or a cancellation ended its closing, this only returns its report.
            await self._client.aclose(0)
            await asyncio.wait({working}, timeout=_END)
            if not working.done():
                working.cancel()
                await asyncio.wait({working}, timeout=_END)
            self._window.sweep(thorough=True)
            if self._source.connected:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_END):
                        await self._settle(at_end=True)
            if self._source.connected and await self._source.release(list(self._window.held), _END):
                self._window.held_released()
        finally:
            # A call that began after the source is closed would connect again, and nobody would close the connection.
            extending.cancel()
            await asyncio.wait({extending}, timeout=_END)
            await self._source.aclose(_END)
