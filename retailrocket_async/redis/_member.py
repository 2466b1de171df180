"""One process among those that share a limit, on one event loop.

Each process books the moment of its next request in Redis, by one script that runs there at once as a whole, and waits
for it. What comes back is a duration, so no host's clock matters. The script spaces the bookings evenly, and its guard
counts by when the API has surely counted each request, as `LocalLimiter` does: a process tells what became of its
requests along with its next booking, so a permit costs one command. A request that is later than that alone is told of
by a command of its own.

A process has one booking at a time. One that it cannot keep, as it woke too late or a pause has come, it gives up, and
books again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import uuid
from contextvars import Context
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, ParamSpec, TypeVar

from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)

from retailrocket_async import LocalLimiter, RetailRocketError
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async.redis._outage import PROBE, Outage, share
from retailrocket_async.redis._reservation import MEMORY, Answer, Reservations

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis, RedisCluster

    from retailrocket_async import Permit, RateLimit

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("retailrocket_async")

_MAX_PAUSE: Final = 60.0
"""Seconds a pause may last at most, as with `LocalLimiter`."""

_STALE: Final = 0.1
"""Part of the window by which a process may be late for its booking."""

_BOOKINGS: Final = 3
"""How often a process that is late every time books: an event loop that is always late must send some day."""

_TOLD: Final = 0.25
"""Part of the window after which Redis must know of a request that was not sent when it should have been."""

_LATE: Final = 0.005
"""Seconds by which a request may be late and Redis need not know."""

_LONGEST: Final = 30.0
"""Seconds for which Redis counts a request that has not left yet: its process may have died."""


_OUT_OF_ORDER: Final = (BusyLoadingError, ClusterDownError, MasterDownError, OutOfMemoryError, TryAgainError)
"""Refusals by a Redis that is the right one, and is out of order for a while."""


class RedisUnreachableError(RetailRocketError, ConnectionError):
    """Redis does not answer, or refuses, and the limiter was told to raise; the message names the kind of error."""


class Member:
    """What `RedisLimiter` is on one event loop; the arguments are the same.

    Args:
        before: what the limiter was on a loop that is closed now; None where there was none.

    Attributes:
        generation: what tells a Redis that remembers from one that does not; None before its first answer.
        seen: processes that share the limit, the largest number of the last minute.
        reached: whether Redis has ever answered, so that its address, user and password are right.
    """

    def __init__(  # noqa: PLR0913 - what the limiter was given
        self,
        redis: Redis | RedisCluster,
        rate_limit: RateLimit,
        *,
        name: str,
        replicas: int | None,
        on_unreachable: Literal["share", "wait", "raise"],
        timeout: float,
        before: Member | None,
    ) -> None:
        self.rate_limit = rate_limit
        self._replicas = replicas
        self._on_unreachable = on_unreachable
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._reservations = Reservations(redis, name, rate_limit, uuid.uuid4().hex[:12])
        self._numbers = itertools.count()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._asking: asyncio.Task[_Booking | None] | None = None
        self._telling: asyncio.Task[None] | None = None
        # What a waiter that was cancelled has left for the next one.
        self._booked: _Booking | None = None
        self._own: Permit | None = None
        self._absence: Outage | None = None
        self._failure = ""
        self.generation: int | None = before.generation if before is not None else None
        self.seen: int = before.seen if before is not None else 1
        self.reached: bool = before is not None and before.reached
        self._seen_at = self._answered_at = self._loop.time()
        self._paused_until = -math.inf
        # What Redis is to be told.
        self._untold_pause = False
        self._refused_at = -math.inf
        self._counted: dict[int, float | None] = {}
        self._late: set[int] = set()
        self._late_timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> Permit | None:
        """Wait for the right to make one request, and take it; in the order of the calls.

        Raises:
            RedisUnreachableError: with ``on_unreachable="raise"``, where Redis does not answer within `timeout`.
        """
        self._waiting += 1
        try:
            # One at a time: the lock's queue is fair, and what a cancelled waiter leaves is the next one's.
            async with self._turn:
                return await self._permit()
        finally:
            self._waiting -= 1
            if self._asking is not None and not self._waiting:
                # Nobody wants it, and the caller may be about to close the Redis client.
                self._asking.cancel()
                self._asking = None

    async def ping(self) -> None:
        """Ask Redis whether it can be used.

        Raises:
            RedisUnreachableError: it does not answer, or refuses.
        """
        if await self._command(None, wanted=True) is None:
            raise RedisUnreachableError(f"Redis does not answer: {self._failure}")

    async def _permit(self) -> Permit | None:
        while True:
            if (absence := self._absence) is not None and absence.own is not None:
                self._probe()
                if self._own is None:
                    self._own = await absence.own.acquire()
                if not absence.is_over:
                    own, self._own = self._own, None
                    return own
            booking = await self._booking()
            if booking is not None:
                own, self._own = self._own, None
                return _Permit(self, booking, own)
            if self._on_unreachable == "raise":
                raise RedisUnreachableError(f"Redis does not answer: {self._failure}")
            if self._absence is None or self._absence.own is None:
                await asyncio.sleep(PROBE)

    def pause_until(self, deadline: float) -> None:
        """Grant nothing in any process before `deadline` (loop time), nor before a later one; at most 60 s from now."""
        now = self._loop.time()
        deadline = min(deadline, now + _MAX_PAUSE)
        if deadline > self._paused_until:
            self._paused_until = deadline
            self._untold_pause = True
            self._tell()
        if self._absence is not None and self._absence.own is not None:
            self._absence.own.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Pause and slow down all processes for a request that the server refused as one too many (429)."""
        self._refused_at = max(self._refused_at, sent_at)
        self._tell()
        if self._absence is not None and self._absence.own is not None:
            self._absence.own.throttled(sent_at)

    # --- bookings ---

    async def _booking(self) -> _Booking | None:
        """Book, and wait for the moment; return None where Redis does not answer."""
        loop = self._loop
        bookings = 0
        while True:
            if self._booked is None:
                if self._asking is None:
                    self._asking = _detached(loop.create_task, self._book())
                # Whoever waits may be cancelled; what was asked for is then the next one's.
                await asyncio.wait([self._asking])
                asking, self._asking = self._asking, None
                bookings += 1
                self._booked = asking.result()
                if self._booked is None:
                    return None
            booking = self._booked
            # A pause that comes meanwhile only ever makes it longer.
            while (wait := max(booking.at, self._paused_until) - loop.time()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            self._booked = None
            last = booking.at + _STALE * self.rate_limit.per
            if self._paused_until <= last and (loop.time() <= last or bookings >= _BOOKINGS):
                return booking
            self.note(booking.number, None)

    async def _book(self) -> _Booking | None:
        while True:
            number = next(self._numbers)
            answer = await self._command(number)
            if answer is None:
                return None
            if answer.wait >= 0:
                return _Booking(number, self._loop.time() + answer.wait)
            # So many requests were granted and have not left that no moment can be named.
            await asyncio.sleep(_STALE * self.rate_limit.per)

    def note(self, number: int, counted_by: float | None, *, late: bool = False) -> None:
        """Note by when (loop time) the API has counted a request, None if it never will; told with the next booking.

        Where it counts the request later than Redis believes, Redis is told soon even if there is no next booking.
        """
        self._counted[number] = counted_by
        if late:
            self._late.add(number)
            if not self._waiting:
                self._tell()
            elif self._late_timer is None:
                self._late_timer = _detached(self._loop.call_later, _TOLD * self.rate_limit.per, self._tell_late)

    def _tell_late(self) -> None:
        self._late_timer = None
        if self._late:
            self._tell()

    # --- commands ---

    def _tell(self) -> None:
        """Tell Redis what it does not know, without a booking, in a task of its own."""
        if self._telling is None or self._telling.done():
            self._telling = _detached(self._loop.create_task, self._tell_all())

    async def _tell_all(self) -> None:
        more = True
        # What comes while a command is on its way goes with another one.
        while more:
            answer = await self._command(None)
            more = answer is not None and (self._untold_pause or self._refused_at > -math.inf or bool(self._late))

    def _probe(self) -> None:
        """Ask whether Redis is back, where that is due and somebody wants to know."""
        absence = self._absence
        if absence is None or absence.is_over or not self._waiting:
            return
        now = self._loop.time()
        if now >= absence.asked_at + PROBE:
            absence.asked_at = now
            self._tell()

    async def _command(self, book: int | None, *, wanted: bool = False) -> Answer | None:
        """Give Redis a command with all that is to be told; return None if it does not answer.

        Args:
            book: the number of the request to book for; None to book nothing.
            wanted: whether a failure counts although nobody waits for a permit.
        """
        loop = self._loop
        now = loop.time()
        pause = self._paused_until - now if self._untold_pause else None
        refused = now - self._refused_at if self._refused_at > -math.inf else None
        counted = [(number, at if at is None else at - now) for number, at in self._counted.items()]
        # What Redis cannot be told now is of no use to it when it is back: all of it lasts for a moment only.
        self._untold_pause = False
        self._refused_at = -math.inf
        self._counted.clear()
        self._late.clear()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._reservations.call(
                    generation=self._remembered(now),
                    pause=pause if pause is not None and pause > 0 else None,
                    refused=refused,
                    book=book,
                    counted=counted,
                )
        except (RedisError, RedisClusterException, OSError) as error:
            self._untold_pause = self._untold_pause or pause is not None
            # Where nobody waits, the caller may have closed the Redis client; whoever comes next will see.
            if wanted or book is not None or self._waiting or self._absence is not None:
                self._failed(error)
            return None
        self._answered(answer)
        return answer

    def _remembered(self, now: float) -> int | None:
        """Return the generation of a Redis that has not lost its memory; None where that does not matter."""
        # What nobody has asked for so long is forgotten as it should be. And who goes by a share of its own has let the
        # window pass already.
        shares = self._absence is not None and self._absence.own is not None
        return None if shares or now > self._answered_at + MEMORY else self.generation

    def _answered(self, answer: Answer) -> None:
        now = self._answered_at = self._loop.time()
        self.reached = True
        self.generation = answer.generation
        if answer.pause > 0:
            self._paused_until = max(self._paused_until, now + answer.pause)
        if answer.processes >= self.seen or now >= self._seen_at + 60.0:
            self.seen = answer.processes
            self._seen_at = now
        if self._absence is not None and self._absence.answered(now):
            self._absence = None
            write_log(logger, logging.INFO, "Redis answers again: the limit is shared as before")

    def _failed(self, error: Exception) -> None:
        now = self._loop.time()
        self._failure = _kind(error)
        if not self.reached and isinstance(error, _OUT_OF_ORDER):
            self.reached = True
            self._absence = None
        if self._absence is not None:
            self._absence.failed(now)
        else:
            self._absence = self._begin_absence(now)
        if self._absence.own is not None:
            # Whoever waits for a share of its own does not ask meanwhile.
            _detached(self._loop.call_later, PROBE + 0.001, self._probe)

    def _begin_absence(self, now: float) -> Outage:
        if self._on_unreachable != "share" or not (self.reached or self._replicas):
            # Of a Redis that was never reached it is not known how many processes there are.
            own = None
            does = "nothing is sent until it does"
        else:
            replicas = self._replicas or self.seen
            limit = share(self.rate_limit, replicas)
            own = LocalLimiter(limit)
            # Others may have used up the window that there is now: it has to pass first.
            own.pause_until(max(self._paused_until, now + self.rate_limit.per + self.rate_limit.jitter))
            rate = limit.requests / limit.per
            does = f"this process sends {rate:.3g} requests a second until it does, as one of {replicas}"
        if self.reached:
            write_log(logger, logging.WARNING, "Redis does not answer (%s): %s", self._failure, does)
        else:
            advice = "look at the limiter's address, user and password"
            write_log(logger, logging.ERROR, "Redis has never answered (%s): %s; %s", self._failure, does, advice)
        return Outage(now, self.rate_limit.per, own)


class _Booking(NamedTuple):
    """The moment (loop time) at which a request may be sent."""

    number: int
    at: float


class _Permit:
    """One request, until the API has surely counted it."""

    __slots__ = ("_at", "_counted_by", "_loop", "_member", "_number", "_own", "_unsent")

    def __init__(self, member: Member, booking: _Booking, own: Permit | None) -> None:
        self._member = member
        self._loop = asyncio.get_running_loop()
        self._number, self._at = booking
        self._own = own
        self._counted_by = math.inf
        self._unsent = _detached(self._loop.call_at, self._at + _TOLD * member.rate_limit.per, self._not_sent)

    def sent(self) -> None:
        if self._own is not None:
            self._own.sent()
        self._count(self._loop.time() + self._member.rate_limit.jitter)

    def done(self, *, answered: bool = False) -> None:
        if self._own is not None:
            self._own.done(answered=answered)
        self._count(self._loop.time() + (0.0 if answered else self._member.rate_limit.jitter))

    def _count(self, by: float) -> None:
        self._unsent.cancel()
        if by >= self._counted_by:
            return
        # What Redis believes until it is told is that it left on time.
        late = math.isinf(self._counted_by) and by > self._at + self._member.rate_limit.jitter + _LATE
        self._counted_by = by
        self._member.note(self._number, by, late=late)

    def _not_sent(self) -> None:
        self._member.note(self._number, self._loop.time() + _LONGEST, late=True)


def _detached(start: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Start a task or a timer in an empty context, so that it keeps none of its caller's."""
    return Context().run(start, *args, **kwargs)


def _kind(error: Exception) -> str:
    """Return what may be told of an error: its type, and the code of the server's answer, such as READONLY."""
    code = re.match(r"[A-Z]{3,}\b", str(error))
    return f"{type(error).__name__}: {code[0]}" if code else type(error).__name__
