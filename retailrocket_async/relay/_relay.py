"""The relay: fetches messages from a broker, delivers their events, and settles the messages that have an outcome.

`Window` stores the messages and their states; this module calls the broker and the client. A message leaves the window
only when the broker has confirmed that the message is settled. So if the relay crashes, the broker still has every
message whose event was not delivered. If an event was delivered and the relay crashes before the message is settled,
the event is delivered twice.
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
from retailrocket_async.relay._at_most_once import AtMostOnce
from retailrocket_async.relay._reconnecting_source import ReconnectingSource
from retailrocket_async.relay._timestamp import Timestamps
from retailrocket_async.relay._window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async import AsyncTrackingClient
    from retailrocket_async.relay._source import Lag, Message, Source
    from retailrocket_async.relay._stats import RelayStats

BATCH = 500
WINDOW = 6_000
WINDOW_BYTES = 16 * 1024 * 1024
GRACE = 25.0

_IDLE = 0.5
"""Seconds that a fetch waits for messages while no events are tracked."""

_BUSY = 0.05
"""Seconds between two checks for new outcomes while events are tracked."""

_RETRY = 1.0
"""Seconds between two attempts to track messages while the client is down or halted."""

_TRACKED = 500
"""Messages that are passed to the client in one call. Other tasks can run between two calls."""

_HEARTBEAT = 20.0
"""Seconds between two calls of `extend` if the source has no leases."""

_END = 5.0
"""Seconds that each step of the shutdown may take after the grace period, e.g. settling and disconnecting.

With the default grace period the relay stops within 30 s, after which process managers commonly kill a process, unless
the broker fails during the shutdown.
"""

logger = logging.getLogger("retailrocket_async")


class Relay(Uncopyable):
    """Delivers the events that services publish to a broker, each event at least once.

    The events that ``RetryPolicy.at_most_once`` of the client names are delivered at most once: if the broker hands out
    such an event a second time, nobody knows whether the event was sent, and the message becomes a dead letter with the
    reason ``"at_most_once"``. `WelcomeSequence` is always among these events unless the policy permits otherwise.

    A message is acknowledged when its event has an outcome. If the API refuses the event, or the message is no valid
    event, the message is stored as a dead letter first. While the API is down or refuses the key, the relay keeps the
    fetched messages and fetches no more.

    Args:
        source: the broker; the relay opens and closes the source.
        client: delivers the events. The client must not be used elsewhere; the relay closes the client. Configure the
            client with ``RetryPolicy(outlast=True)``: otherwise events become dead letters during an outage.
        batch: largest number of messages in one fetch, 1 or more; default 500.
        window: largest number of messages that are fetched and not settled, `batch` or more; default 6,000, enough for
            4,000 events a second if a batch takes 1.5 s. With a smaller window the client sends fewer events a second.
            After a crash at most `window` events are delivered twice.
        window_bytes: total size in bytes of the messages that are fetched and not settled, at which the relay stops
            fetching, 1 or more; default 16 MiB. The last fetch may exceed this size.
        grace: seconds, 0 or more, to go on delivering fetched messages after `stop` was called; default 25.
        allow_custom: deliver events of unknown names, too; default False: events of unknown names become dead letters.
        allow_extra: deliver unknown fields of documented events, too; default False: events with unknown fields become
            dead letters.
        trouble: a function that `unready` calls, to report a problem that the relay itself does not see, e.g. that the
            limiter's Redis was never reached. The function returns one line that describes the problem, or None if
            there is no problem. The function must not block and not raise. Default None: no function.

    Raises:
        ConfigurationError: a value is out of range.
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
        allow_extra: bool = False,
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
        self._allow_extra = allow_extra
        self._other_trouble = trouble
        self._timestamps = Timestamps(allow_custom=allow_custom, allow_extra=allow_extra)
        self._once = AtMostOnce(client.at_most_once, allow_custom=allow_custom, allow_extra=allow_extra)
        self._window = Window(window, window_bytes, self._once)
        self._stopping = asyncio.Event()
        self._ran = False

    async def run(self) -> bool:
        """Deliver events until `stop` is called or this call is cancelled; then shut down.

        During the shutdown no messages are fetched. The relay goes on delivering fetched messages for `grace` seconds
        (not after a cancellation). The relay then settles the messages that have an outcome, returns the messages
        without an outcome to the broker, and closes client and source.

        Returns:
            True if all messages with an outcome are settled. False if the broker failed during the shutdown and some
            messages are not settled: the broker hands out these messages again, and delivered events are delivered
            twice.

        Raises:
            ConfigurationError: the source finds a wrong setting when it connects, e.g. that a stream's key holds
                something else.
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
        """Make `run` shut down and return. Call this method in the relay's event loop."""
        self._stopping.set()

    @property
    def unready(self) -> str | None:
        """One line that says why the relay delivers nothing, for a readiness probe; None if the relay works.

        During an outage of the API the value is None, too, because another relay could not deliver events either.
        """
        if self._stopping.is_set():
            return "stopping"
        if (trouble := self._source.trouble) is not None:
            return trouble
        if self._client.stats().state == "halted":
            return "sending is halted: the log says what to correct"
        return None if self._other_trouble is None else self._other_trouble()

    def stats(self) -> RelayStats:
        """Return a snapshot of the counters. Does not wait for the broker."""
        return self._window.stats(broker_failures=self._source.failures, connected=self._source.trouble is None)

    async def lag(self) -> Lag:
        """Ask the broker how many messages are not settled yet.

        Raises:
            Exception: an error of the broker's library.
            ConnectionError: the relay has stopped and closed its source.
        """
        return await self._source.lag()

    # --- while it runs ---

    async def _work(self) -> None:
        """Fetch, track and settle messages until the relay is stopped and all messages with an outcome are settled."""
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
        """Connect, settle and fetch, each only if needed; return False if a call of the broker failed."""
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
        """Return whether events may be passed to the client.

        While the API does not answer, or refuses the key, events are passed only if the client has no event of the
        relay any more: the client needs an event to find out whether the API works again.
        """
        return not self._stopping.is_set() and (not self._window.open or self._client.stats().state == "sending")

    def _may_fetch(self) -> bool:
        return not self._window.held and self._window.has_room(self._batch) and self._may_track()

    async def _fetch(self) -> bool:
        """Fetch at most one batch, and at most as many messages as the window has room for.

        Return False if the call failed.
        """
        wait = _BUSY if self._window.open else _IDLE
        messages = await self._source.fetch(min(self._batch, self._window.room), wait)
        if messages is None:
            return False
        self._window.add(messages)
        return True

    async def _track(self) -> None:
        """Pass the messages in `Window.held` to the client."""
        window = self._window
        if self._client.stats().state != "sending":
            # If sending is halted (the key is wrong, for example), the client may refuse events at once. Without this
            # sleep the relay would then retry in a busy loop.
            await self._sleep(_RETRY)
        try:
            while window.held:
                messages = window.first_held(_TRACKED)
                if not await self._recorded(messages):
                    return
                if messages != window.first_held(_TRACKED):
                    continue
                envelopes = [self._timestamps.envelope_of(message) for message in messages]
                window.tracked(
                    await self._client.track_envelopes(
                        envelopes, allow_custom=self._allow_custom, allow_extra=self._allow_extra
                    )
                )
        except BufferFullError:
            # The client's buffer is configured to raise if it is full, instead of waiting for room.
            await self._sleep(_BUSY)
        except ClientClosedError:
            # The relay is shutting down. `_end` returns the held messages to the broker.
            return

    async def _recorded(self, messages: Sequence[Message]) -> bool:
        """Let the broker record which of the messages are about to be sent, if their events must be sent at most once.

        Return whether the messages may be sent; False if the call failed.
        """
        once = [message for message in messages if self._once.has(message)] if self._source.records_sending else []
        if not once:
            self._source.skipped("record_sending")
            return True
        recorded = await self._source.record_sending(once)
        if recorded is None:
            return False
        kept = set(recorded)
        if lost := [message for message in once if message not in kept]:
            self._window.first_held_lost(lost)
        return True

    async def _settle(self, *, at_end: bool = False) -> bool:
        """Settle the messages that have an outcome.

        Return False if the messages in `Window.done` could not be acknowledged.

        If the broker cannot store dead letters, their messages stay in the window, and the relay goes on delivering
        other messages.
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
        """Sleep for `seconds` or until the relay is stopped; at most half a second if the relay is stopped already."""
        if self._stopping.is_set():
            await asyncio.sleep(min(seconds, _IDLE))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _keep_leases(self) -> None:
        """Extend the leases of all messages in the window at regular intervals, until cancelled."""
        lease = self._source.lease
        beat = _HEARTBEAT if lease is None else lease / 3
        while True:
            # After a failure the sleep is shorter, because the leases may expire soon.
            await asyncio.sleep(beat if self._source.trouble is None else min(beat, 1.0))
            if self._source.connected:
                await self._source.extend(self._window.messages(), max(1.0, beat))

    # --- at the end ---

    async def _end(self, working: asyncio.Task[None], extending: asyncio.Task[None]) -> None:
        """Close the client, settle messages with an outcome, return the rest to the broker, and disconnect."""
        try:
            # `aclose(0)` gives every event an outcome. If the client is already closed, the call does nothing.
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
            # A call of `extend` on a closed source could connect again, and nothing would close that connection.
            extending.cancel()
            await asyncio.wait({extending}, timeout=_END)
            await self._source.aclose(_END)
