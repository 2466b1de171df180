"""The relay: takes messages from a broker, delivers their events, and acknowledges what has an outcome.

::

    source --fetch--> held --decode, track--> open --outcome--> done, dead --settle--> source
                       ^                        :
                       :...... back: the key, the shop or the address is wrong, the end .......> release

A message is in exactly one of these places, and leaves the last one only when the broker has confirmed that it is
settled. So whatever stops the relay, and wherever, the broker still has all that was not delivered; what was delivered
and not yet settled is delivered twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter, deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import attrs

from retailrocket_async import (
    BufferFullError,
    ClientClosedError,
    Codec,
    ConfigurationError,
    CustomEvent,
    Delivered,
    EventValidationError,
    UsageError,
)
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._disposition import disposition_of
from retailrocket_async.relay._reconnecting_source import ReconnectingSource
from retailrocket_async.relay._stats import RelayStats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async import AsyncTrackingClient, Outcome, Receipt, View
    from retailrocket_async.relay._source import Lag, Message, Source

BATCH = 500
WINDOW = 6_000
WINDOW_BYTES = 16 * 1024 * 1024
GRACE = 25.0

_IDLE = 0.5
"""Seconds a fetch may wait while nothing is on its way."""

_BUSY = 0.05
"""Seconds until outcomes are looked at again, while any are awaited."""

_TRIAL = 1.0
"""Seconds between two trials with what is held, where the client does not wait for better times itself."""

_UNCHANGED = 100
"""Messages in a row without an outcome, behind which a quick look looks no further."""

_SELDOM = 0.25
"""Seconds between two looks at all of them."""

_BREATH = 500
"""Messages that are handed to the client at once; it lets other tasks run in between."""

_HEARTBEAT = 20.0
"""Seconds between two signs of life to a broker that knows no leases."""

_REASON = 500
"""Letters of a dead letter's reason at most: it may quote what a message holds."""

_LAST_WORDS = 5.0
"""Seconds for the last settling, and again for the parting from the broker, after the grace; so that with its default
the end comes within the 30 s that process managers commonly give, but for a broker that fails just then."""

logger = logging.getLogger("retailrocket_async")


class Relay(Uncopyable):
    """Delivers the events that others publish to a broker, each at least once.

    Messages are acknowledged when their events have an outcome: delivered ones are done, refused and unreadable ones
    become dead letters. While the API is down, or the key is refused, what was fetched is held, and no more is.

    Args:
        source: the broker; opened and closed by the relay.
        client: delivers the events; the relay's alone, and closed by it. Use ``RetryPolicy(outlast=True)``, or an
            outage makes dead letters.
        batch: messages in one fetch, 1 or more; default 500.
        window: messages that may be handed out and not settled, `batch` or more; default 6,000, which is 4,000
            events a second at 1.5 s a batch. Less starves the client, more makes more duplicates after a crash, which
            are at most so many.
        window_bytes: bytes of them after which no more are fetched, 1 or more; default 16 MiB. The last fetch may go
            beyond it.
        grace: seconds, 0 or more, that what was fetched has to be delivered once `stop` was called; default 25.
        allow_custom: deliver events of unknown names, too; default False: they become dead letters.
        trouble: asked by `unready` for one more reason why nothing can be delivered, in one line, e.g. that a limiter
            was never reached; default None: there is none. It must not block, nor raise.

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
        self._window = window
        self._window_bytes = window_bytes
        self._grace = grace
        self._allow_custom = allow_custom
        self._other_trouble = trouble
        self._codec = Codec()
        self._held: deque[Message] = deque()
        self._open: list[tuple[Message, Receipt]] = []
        self._done: list[Message] = []
        self._dead: list[tuple[Message, str]] = []
        # When all of the open ones are to be looked at again.
        self._thorough_at = -math.inf
        self._stopping = asyncio.Event()
        self._ran = False
        self._counts: Counter[str] = Counter()
        self._dead_by: Counter[str] = Counter()
        # Of what is in hand or not settled; and of one message, as the last fetch had them.
        self._bytes = 0
        self._typical = 1

    async def run(self) -> bool:
        """Deliver until `stop` is called, or this call is cancelled; then come to an orderly end.

        The end: nothing more is fetched, what was fetched has `grace` seconds to be delivered (none on a cancellation),
        what has an outcome is settled, the rest is given back, client and source are closed.

        Returns:
            Whether all that has an outcome is settled; False where the broker failed at the end, so that some of it
            will be handed out, and delivered, again.

        Raises:
            ConfigurationError: what the source finds out when it connects, e.g. that a stream's name is taken.
            UsageError: run a second time.
        """
        if self._ran:
            raise UsageError("a relay runs once: make another one")
        self._ran = True
        working = asyncio.create_task(self._work())
        keeping = asyncio.create_task(self._keep_leases())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            await self._client.aclose(self._grace)
        finally:
            self._stopping.set()
            try:
                await self._end(working)
            finally:
                for task in (working, keeping, stopped):
                    task.cancel()
                await asyncio.wait({working, keeping, stopped}, timeout=_LAST_WORDS)
        if working.done() and not working.cancelled():
            working.result()
        unsettled = len(self._done) + len(self._dead)
        if unsettled:
            write_log(
                logger,
                logging.ERROR,
                "%d messages could not be settled at the end, and will be delivered again",
                unsettled,
            )
        return not unsettled

    def stop(self) -> None:
        """Have `run` come to its end; call it in the event loop."""
        self._stopping.set()

    @property
    def unready(self) -> str | None:
        """Why nothing is being delivered, in one line, where somebody has to know: None where all is well.

        That the API is down is no reason: it is nothing that another relay would do better.
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
        first = (self._open[0][0] if self._open else self._held[0]).published_at if self._open or self._held else None
        return RelayStats(
            **self._counts,
            dead=dict(self._dead_by),
            in_hand=len(self._open) + len(self._held),
            unsettled=len(self._done) + len(self._dead),
            size=self._bytes,
            oldest_age=0.0 if first is None else max(0.0, time.time() - first),
            broker_failures=self._source.failures,
            connected=self._source.trouble is None,
        )

    async def lag(self) -> Lag:
        """Return how far the relay is behind, as the broker tells it; raises what the broker's library raises."""
        return await self._source.lag()

    # --- the work ---

    async def _work(self) -> None:
        """Fetch, track and settle, until told to stop and nothing is left to settle."""
        while self._open or self._done or self._dead or not self._stopping.is_set():
            self._sweep()
            if not await self._ask_broker():
                continue
            if self._held and self._may_track():
                await self._track()
            elif self._open and not self._may_fetch():
                await self._wait_for_outcomes()
            elif self._dead and not self._may_fetch():
                await self._sleep(_BUSY)

    async def _ask_broker(self) -> bool:
        """Connect, settle and fetch, as far as there is reason to; return whether the broker did as it was told."""
        if not self._source.open:
            await self._source.connect(self._sleep)
            if not self._source.open:
                return False
        if not await self._settle():
            return False
        if self._may_fetch():
            return await self._fetch()
        self._source.unneeded("fetch")
        return True

    def _may_track(self) -> bool:
        """Whether events may go to the client: it sends, or nothing is on its way that would show that it can again."""
        return not self._stopping.is_set() and (not self._open or self._client.stats().state == "sending")

    def _may_fetch(self) -> bool:
        if self._held:
            return False
        # Small fetches cost as much as large ones: rather wait until there is room for a large one.
        most = min(self._window, self._window_bytes // self._typical)
        return self._room() >= max(1, min(self._batch, most // 2)) and self._may_track()

    def _room(self) -> int:
        """Return how many messages may be fetched, as far as their size can be guessed."""
        count = len(self._open) + len(self._done) + len(self._dead)
        if not count:
            return min(self._window, max(1, self._window_bytes // self._typical))
        return min(self._window - count, (self._window_bytes - self._bytes) // self._typical)

    async def _fetch(self) -> bool:
        """Fetch what there is room for; return whether that worked."""
        wait = _BUSY if self._open else _IDLE
        messages = await self._source.fetch(min(self._batch, self._room()), wait)
        if messages:
            self._held.extend(messages)
            size = _size(messages)
            self._bytes += size
            self._typical = max(1, size // len(messages))
            self._counts["received"] += len(messages)
            self._counts["fetches"] += 1
            self._counts["redelivered"] += sum(message.deliveries > 1 for message in messages)
        return messages is not None

    async def _track(self) -> None:
        """Hand what is held to the client; what is no event is dead."""
        if self._client.stats().state != "sending":
            # A trial. Where the client refuses events while it is halted, they come back at once.
            await self._sleep(_TRIAL)
        held = self._held
        try:
            while held:
                bodies = [self._body_of(message) for message in itertools.islice(held, _BREATH)]
                results = await self._client.track_envelopes(bodies, allow_custom=self._allow_custom)
                # Whatever ends it, a message is in one place.
                for result in results:
                    message = held.popleft()
                    if isinstance(result, EventValidationError):
                        self._bury(message, "undecodable", f"undecodable: {result}")
                    else:
                        self._open.append((message, result))
        except BufferFullError:
            # The client is set not to wait for room.
            await self._sleep(_BUSY)
        except ClientClosedError:
            # The end has begun: what is held is given back.
            return

    def _body_of(self, message: Message) -> bytes:
        if b'"timestamp"' in message.body or message.published_at is None:
            return message.body
        # The moment of the act is not known; that of the publication is nearer to it than now. A producer that makes
        # its own ids may have made one that is no moment at all; and what is no event, the client says as well.
        with suppress(ValueError, OverflowError, OSError):
            event = self._codec.decode(message.body, allow_custom=self._allow_custom)
            if not isinstance(event, CustomEvent):
                moment = datetime.fromtimestamp(message.published_at, UTC)
                return self._codec.encode(attrs.evolve(cast("View", event), timestamp=moment))
        return message.body

    def _sweep(self) -> None:
        """Take what has its outcome out of the open ones.

        Outcomes come in about the order in which the events went, so behind many without one there are few with one:
        those are looked for now and then only. To look at the whole window for every batch costs as much as HTTP.
        """
        now = time.monotonic()
        most = _UNCHANGED
        if now >= self._thorough_at:
            most, self._thorough_at = self._window, now + _SELDOM
        still: list[tuple[Message, Receipt]] = []
        done, delivered, maybe_duplicates = self._done, 0, 0
        looked_at = unchanged = 0
        for pair in self._open:
            looked_at += 1
            message, receipt = pair
            outcome = receipt.outcome
            if outcome is None:
                still.append(pair)
                unchanged += 1
                if unchanged > most:
                    break
                continue
            unchanged = 0
            if type(outcome) is Delivered:
                done.append(message)
                delivered += 1
                maybe_duplicates += outcome.maybe_duplicate or message.deliveries > 1
            else:
                self._judge(message, outcome)
        self._open[:looked_at] = still
        self._counts["delivered"] += delivered
        self._counts["maybe_duplicates"] += maybe_duplicates

    def _judge(self, message: Message, outcome: Outcome) -> None:
        disposition = disposition_of(outcome)
        if disposition.kind == "back":
            self._held.append(message)
        elif disposition.kind == "dead":
            self._bury(message, disposition.why, disposition.reason)
        else:
            self._done.append(message)
            self._counts[disposition.kind] += 1

    def _bury(self, message: Message, why: str, reason: str) -> None:
        self._dead.append((message, " ".join(reason.split())[:_REASON]))
        self._dead_by[why] += 1

    async def _settle(self, *, at_once: bool = False) -> bool:
        """Settle what has its outcome; return whether the broker may be asked for more.

        Dead letters that cannot be kept stay here, and count in the window. What is behind them is delivered meanwhile.
        """
        if not self._done:
            self._source.unneeded("settle")
        elif await self._source.settle(self._done, []):
            self._bytes -= _size(self._done)
            self._done = []
        else:
            return False
        if not self._dead:
            self._source.unneeded("bury")
        elif await self._source.bury(self._dead, at_once=at_once):
            self._bytes -= _size(self._buried())
            self._dead = []
        return True

    async def _wait_for_outcomes(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_BUSY):
                await self._open[0][1]

    async def _sleep(self, seconds: float) -> None:
        """Sleep until the relay is told to stop, or for a moment where it has been."""
        if self._stopping.is_set():
            await asyncio.sleep(min(seconds, _IDLE))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _keep_leases(self) -> None:
        """Tell the broker again and again that what is not settled is being worked on."""
        lease = self._source.lease
        beat = _HEARTBEAT if lease is None else lease / 3
        while True:
            # Soon after a failure: the leases may be about to end.
            await asyncio.sleep(beat if self._source.trouble is None else min(beat, 1.0))
            if self._source.open:
                held = [*(message for message, _ in self._open), *self._held, *self._done, *self._buried()]
                await self._source.extend(held, max(1.0, beat))

    def _buried(self) -> list[Message]:
        return [message for message, _ in self._dead]

    # --- the end ---

    async def _end(self, working: asyncio.Task[None]) -> None:
        """Give everything an outcome now, settle it, give the rest back and part from the broker."""
        # Closed before, or cancelled while it closed: it has a report for whoever asks again.
        await self._client.aclose(0)
        await asyncio.wait({working}, timeout=_LAST_WORDS)
        if not working.done():
            working.cancel()
            await asyncio.wait({working}, timeout=_LAST_WORDS)
        self._thorough_at = -math.inf
        self._sweep()
        if self._source.open:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._settle(at_once=True)
        rest = [*self._held]
        if self._source.open and await self._source.release(rest, _LAST_WORDS):
            self._held.clear()
            self._counts["released"] += len(rest)
            self._bytes -= _size(rest)
        await self._source.aclose(_LAST_WORDS)


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message.body) for message in messages)
