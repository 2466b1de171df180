"""One process among those that share a limit, on one event loop.

Before each request the process reserves a moment in Redis, and waits for it. A script reserves the moment in one
atomic step. It returns a duration, so no host's clock matters. The script spaces the moments evenly. Its guard counts
requests by when the API has surely counted them, as `LocalLimiter` does: a process reports what became of its requests
along with its next reservation, so a permit costs one command. Only a request that is later than its reservation may
need a report of its own.

A process has one reservation at a time. If it cannot keep the moment, because it woke too late or a pause began, it
cancels the reservation and makes another one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import uuid
from typing import TYPE_CHECKING, Final, Literal

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
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async.redis._outage import PROBE, Outage, share
from retailrocket_async.redis._permit import REPORT_WITHIN, Reservation, SharedPermit
from retailrocket_async.redis._report import PendingReport
from retailrocket_async.redis._reserve_script import MEMORY, Answer, ReserveScript

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

    from retailrocket_async import Permit, RateLimit

logger = logging.getLogger("retailrocket_async")

_MAX_PAUSE: Final = 60.0
"""Seconds a pause may last at most, as with `LocalLimiter`."""

_STALE: Final = 0.1
"""Part of the window by which a process may be late for its reservation."""

_ATTEMPTS: Final = 3
"""Reservations in a row that a process may be late for. It keeps the last one, or a slow event loop never sends."""

_PROCESSES_FOR: Final = 60.0
"""Seconds for which the largest number of processes that Redis has counted stands."""

_TEMPORARY: Final = (BusyLoadingError, ClusterDownError, MasterDownError, OutOfMemoryError, TryAgainError)
"""Refusals by the right Redis, which cannot serve for a while."""


class RedisUnreachableError(RetailRocketError, ConnectionError):
    """Redis does not answer, or refuses; the message names the kind of error.

    Raised by `RedisLimiter.ping`, and by `RedisLimiter.acquire` with ``on_unreachable="raise"``.
    """


class Member:
    """A `RedisLimiter` on one event loop; the arguments are the same.

    Args:
        before: the member of an event loop that is closed now, for the same limiter; None if there was none.

    Attributes:
        generation: identifies the data in Redis, see `Answer`; None before the first answer.
        processes: processes that share the limit, the largest number of the last minute.
        reached: whether Redis has ever answered, so that its address, user and password are right.
    """

    def __init__(  # noqa: PLR0913 - the arguments of the limiter
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
        self._script = ReserveScript(redis, name, rate_limit, uuid.uuid4().hex[:12])
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._reserving: asyncio.Task[Reservation | None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        # A cancelled waiter leaves these to the next one.
        self._reservation: Reservation | None = None
        self._local_permit: Permit | None = None
        self._outage: Outage | None = None
        self._failure = ""
        self.generation: int | None = before.generation if before is not None else None
        self.processes: int = before.processes if before is not None else 1
        self.reached: bool = before is not None and before.reached
        self._processes_at = self._answered_at = self._loop.time()
        self._paused_until = -math.inf
        self._pending = PendingReport()
        self._late_timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> Permit | None:
        """Wait for the right to make one request, and take it; in the order of the calls.

        Raises:
            RedisUnreachableError: with ``on_unreachable="raise"``, if Redis does not answer within `timeout`.
        """
        self._waiting += 1
        try:
            # One waiter at a time. The lock is fair, and the next waiter takes over what a cancelled one leaves.
            async with self._lock:
                return await self._permit()
        finally:
            self._waiting -= 1
            if self._reserving is not None and not self._waiting:
                # Nobody needs the reservation, and the caller may be about to close the Redis client.
                self._reserving.cancel()
                self._reserving = None

    async def ping(self) -> None:
        """Ask Redis whether it can be used.

        Raises:
            RedisUnreachableError: it does not answer, or refuses.
        """
        if await self._command(None, is_ping=True) is None:
            raise RedisUnreachableError(f"Redis does not answer: {self._failure}")

    async def _permit(self) -> Permit | None:
        while True:
            if (outage := self._outage) is not None and outage.local is not None:
                self._probe()
                if self._local_permit is None:
                    self._local_permit = await outage.local.acquire()
                if not outage.confirmed:
                    await self._confirm(outage)
                if not outage.is_over:
                    return self._take_local_permit()
            reservation = await self._kept_reservation()
            if reservation is not None:
                return SharedPermit(self, reservation, self._take_local_permit())
            if self._on_unreachable == "raise":
                raise RedisUnreachableError(f"Redis does not answer: {self._failure}")
            if self._outage is None or self._outage.local is None:
                await asyncio.sleep(PROBE)

    async def _confirm(self, outage: Outage) -> None:
        """Probe once before the first request of an outage.

        If only one command took too long, the other processes still share the whole limit, and a request beside it
        would be one too many.
        """
        if not outage.is_over:
            self._report_now()
        if self._reporting is not None:
            await asyncio.wait([self._reporting])

    def _take_local_permit(self) -> Permit | None:
        permit, self._local_permit = self._local_permit, None
        return permit

    def pause_until(self, deadline: float) -> None:
        """Grant nothing in any process before `deadline` (loop time), nor before a later one; at most 60 s from now."""
        now = self._loop.time()
        deadline = min(deadline, now + _MAX_PAUSE)
        if deadline > self._paused_until:
            self._paused_until = deadline
            self._pending.add_pause()
            self._report_now()
        if self._outage is not None and self._outage.local is not None:
            self._outage.local.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Pause and slow down all processes, as the server refused a request with a 429."""
        self._pending.add_refusal(sent_at)
        self._report_now()
        if self._outage is not None and self._outage.local is not None:
            self._outage.local.throttled(sent_at)

    # --- reservations ---

    async def _kept_reservation(self) -> Reservation | None:
        """Reserve a moment, and wait for it; return None if Redis does not answer."""
        loop = self._loop
        attempts = 0
        while True:
            if self._reservation is None:
                if self._reserving is None:
                    self._reserving = detached(loop.create_task, self._reserve())
                # If this waiter is cancelled, the next one takes the reservation over.
                await asyncio.wait([self._reserving])
                reserving, self._reserving = self._reserving, None
                attempts += 1
                self._reservation = reserving.result()
                if self._reservation is None:
                    return None
            reservation = self._reservation
            # A pause that begins meanwhile only makes the wait longer.
            while (wait := max(reservation.at, self._paused_until) - loop.time()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            self._reservation = None
            last = reservation.at + _STALE * self.rate_limit.per
            if self._paused_until <= last and (loop.time() <= last or attempts >= _ATTEMPTS):
                return reservation
            self.report(reservation.number, None)

    async def _reserve(self) -> Reservation | None:
        while True:
            number = next(self._numbers)
            answer = await self._command(number)
            if answer is None:
                return None
            if answer.wait >= 0:
                return Reservation(number, self._loop.time() + answer.wait)
            # Too many granted requests have not left yet, so Redis cannot name a moment.
            await asyncio.sleep(_STALE * self.rate_limit.per)

    # --- reports ---

    def report(self, number: int, counted_by: float | None, *, late: bool = False) -> None:
        """Report, with the next reservation, by when the API has counted a request.

        Args:
            number: the request's number.
            counted_by: the time (loop time); None if the request will never be sent.
            late: whether that is later than Redis believes. If so, it is reported soon even without a reservation.
        """
        self._pending.add_request(number, counted_by, late=late)
        if late:
            if not self._waiting:
                self._report_now()
            elif self._late_timer is None:
                delay = REPORT_WITHIN * self.rate_limit.per
                self._late_timer = detached(self._loop.call_later, delay, self._report_late)

    def _report_late(self) -> None:
        self._late_timer = None
        if self._pending.late:
            self._report_now()

    def _report_now(self) -> None:
        """Send the report without a reservation, in a task of its own."""
        if self._reporting is None or self._reporting.done():
            self._reporting = detached(self._loop.create_task, self._report_all())

    async def _report_all(self) -> None:
        # Reports that are added while a command is under way need another command.
        while await self._command(None) is not None and self._pending.is_urgent:
            pass

    def _probe(self) -> None:
        """Ask whether Redis is back, if a probe is due and somebody waits for a permit."""
        outage = self._outage
        if outage is None or outage.is_over or not self._waiting:
            return
        now = self._loop.time()
        if now >= outage.probed_at + PROBE:
            outage.probed_at = now
            self._report_now()

    # --- commands ---

    async def _command(self, reserve: int | None, *, is_ping: bool = False) -> Answer | None:
        """Send Redis one command with the whole report; return None if Redis does not answer.

        Args:
            reserve: the number of the request to reserve a moment for; None to reserve nothing.
            is_ping: whether a failure counts although nobody waits for a permit.
        """
        now = self._loop.time()
        # If the command fails, only a pause is reported again: the rest holds for a moment only.
        report = self._pending.take()
        pause = self._paused_until - now
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._script.run(
                    generation=self._expected_generation(now),
                    pause=pause if report.pause and pause > 0 else None,
                    refused=None if report.refused_at is None else now - report.refused_at,
                    reserve=reserve,
                    counted=[(number, at if at is None else at - now) for number, at in report.counted],
                )
        except (RedisError, RedisClusterException, OSError) as error:
            if report.pause:
                self._pending.add_pause()
            # If nobody waits, the caller may have closed the Redis client, and the next waiter notices an outage.
            if is_ping or reserve is not None or self._waiting or self._outage is not None:
                self._failed(error)
            return None
        self._answered(answer)
        return answer

    def _expected_generation(self, now: float) -> int | None:
        """Return the generation of a Redis that has not lost its data; None if a loss does not matter."""
        # Redis may delete what was not used for so long. And a process that sends its own share has already let the
        # window pass.
        shares = self._outage is not None and self._outage.local is not None
        return None if shares or now > self._answered_at + MEMORY else self.generation

    def _answered(self, answer: Answer) -> None:
        now = self._answered_at = self._loop.time()
        self.reached = True
        self.generation = answer.generation
        if answer.pause > 0:
            self._paused_until = max(self._paused_until, now + answer.pause)
        if answer.processes >= self.processes or now >= self._processes_at + _PROCESSES_FOR:
            self.processes = answer.processes
            self._processes_at = now
        if self._outage is not None and self._outage.answered(now):
            self._outage = None
            write_log(logger, logging.INFO, "Redis answers again: the limit is shared as before")

    def _failed(self, error: Exception) -> None:
        now = self._loop.time()
        self._failure = _kind(error)
        if not self.reached and isinstance(error, _TEMPORARY):
            self.reached = True
            self._outage = None
        if self._outage is not None:
            self._outage.failed(now)
        else:
            self._outage = self._begin_outage(now)
        if self._outage.local is not None:
            # A waiter of the local limiter sends no command, so a timer does.
            detached(self._loop.call_later, PROBE + 0.001, self._probe)

    def _begin_outage(self, now: float) -> Outage:
        if self._on_unreachable != "share" or not (self.reached or self._replicas):
            # If Redis was never reached, the number of processes is unknown.
            local = None
            consequence = "nothing is sent until it does"
        else:
            replicas = self._replicas or self.processes
            limit = share(self.rate_limit, replicas)
            local = LocalLimiter(limit)
            # Other processes may have used up the current window: it has to pass first.
            local.pause_until(max(self._paused_until, now + self.rate_limit.per + self.rate_limit.jitter))
            rate = limit.requests / limit.per
            consequence = f"this process sends {rate:.3g} requests a second until it does, as one of {replicas}"
        if self.reached:
            write_log(logger, logging.WARNING, "Redis does not answer (%s): %s", self._failure, consequence)
        else:
            advice = "check the limiter's address, user and password"
            text = "Redis has never answered (%s): %s; %s"
            write_log(logger, logging.ERROR, text, self._failure, consequence, advice)
        return Outage(now, self.rate_limit.per, local)


def _kind(error: Exception) -> str:
    """Return what may be shown of an error: its type, and the code of the server's answer, such as READONLY."""
    code = re.match(r"[A-Z]{3,}\b", str(error))
    return f"{type(error).__name__}: {code[0]}" if code else type(error).__name__
