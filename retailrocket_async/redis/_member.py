"""Gets permits from Redis for one process among the processes that share a limit, on one event loop.

Before each request, the process reserves a moment in Redis and waits until this moment. A script in Redis reserves the
moment in one atomic step. The script returns the seconds until the moment, so the hosts' clocks may differ. The script
spaces the moments evenly. The script also checks that no window (any period of the length that `RateLimit.per` states)
contains too many requests. For this check the script uses, like `LocalLimiter`, the times by which the API has
certainly counted each request. A process reports these times with its next reservation, so a permit costs one command.
A separate report is needed only if a request is sent after its reserved moment.

A process has one reservation at a time. If the process misses the moment, because the process woke too late or a pause
began, the process cancels the reservation and makes another one.
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
"""Longest pause in seconds. `LocalLimiter` has the same limit."""

_STALE: Final = 0.1
"""How long after the reserved moment a process may still send, as a part of the window's length.

After this time the process cancels the reservation.
"""

_ATTEMPTS: Final = 3
"""Largest number of reservations for one request. A process uses the last reservation even if the process woke too
late.

Otherwise a process with a slow event loop would never send.
"""

_PROCESSES_FOR: Final = 60.0
"""Seconds for which `Member.processes` keeps its value if Redis counts fewer processes later."""

_TEMPORARY: Final = (BusyLoadingError, ClusterDownError, MasterDownError, OutOfMemoryError, TryAgainError)
"""Errors which show that the address and password are right, but that Redis cannot serve for a while."""


class RedisUnreachableError(RetailRocketError, ConnectionError):
    """Redis does not answer, or refuses commands. The message contains the type of the original error.

    Raised by `RedisLimiter.ping`, and by `RedisLimiter.acquire` with ``on_unreachable="raise"``.
    """


class Member:
    """Does the work of a `RedisLimiter` on one event loop.

    The arguments are those of `RedisLimiter`, and `before`.

    Args:
        before: the limiter's `Member` on an earlier event loop, which is closed now; None if the limiter has not been
            used on another event loop.

    Attributes:
        generation: a number that identifies the data in Redis, see `Answer`; None before the first answer.
        processes: largest number of processes that Redis counted in the last minute.
        reached: whether Redis has ever answered. An answer shows that the address, user and password are right.
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
        # If a waiting call is cancelled, its reservation, and its permit of the local limiter that is used during an
        # outage of Redis, stay here for the next waiting call.
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
        """Wait until one request may be made, and return a permit for this request.

        Waiting calls are served in their order.

        Raises:
            RedisUnreachableError: Redis does not answer within `timeout`, and `on_unreachable` is ``"raise"``.
        """
        self._waiting += 1
        try:
            # Only one call at a time waits for a permit. The lock serves calls in their order.
            async with self._lock:
                return await self._permit()
        finally:
            self._waiting -= 1
            if self._reserving is not None and not self._waiting:
                # No call needs the reservation any more, and the caller may be about to close the Redis client.
                self._reserving.cancel()
                self._reserving = None

    async def ping(self) -> None:
        """Check that Redis answers and accepts commands.

        Raises:
            RedisUnreachableError: Redis does not answer, or refuses the command.
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
        """Send Redis one more command before the first request of an outage is permitted.

        Perhaps only one command took too long, and Redis still works. In this case the other processes use the whole
        limit, and a request that this process sends without Redis would exceed the limit.
        """
        if not outage.is_over:
            self._report_now()
        if self._reporting is not None:
            await asyncio.wait([self._reporting])

    def _take_local_permit(self) -> Permit | None:
        permit, self._local_permit = self._local_permit, None
        return permit

    def pause_until(self, deadline: float) -> None:
        """Grant no permits in any process before `deadline`; see `RedisLimiter.pause_until`."""
        now = self._loop.time()
        deadline = min(deadline, now + _MAX_PAUSE)
        if deadline > self._paused_until:
            self._paused_until = deadline
            self._pending.add_pause()
            self._report_now()
        if self._outage is not None and self._outage.local is not None:
            self._outage.local.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Pause and slow down all processes, because the API refused a request with a 429."""
        self._pending.add_refusal(sent_at)
        self._report_now()
        if self._outage is not None and self._outage.local is not None:
            self._outage.local.throttled(sent_at)

    # --- reservations ---

    async def _kept_reservation(self) -> Reservation | None:
        """Reserve a moment, wait until this moment, and return the reservation.

        Return None if Redis does not answer.
        """
        loop = self._loop
        attempts = 0
        while True:
            if self._reservation is None:
                if self._reserving is None:
                    self._reserving = detached(loop.create_task, self._reserve())
                # If this call is cancelled, the task continues, and the next call uses the task's reservation.
                await asyncio.wait([self._reserving])
                reserving, self._reserving = self._reserving, None
                attempts += 1
                self._reservation = reserving.result()
                if self._reservation is None:
                    return None
            reservation = self._reservation
            # The time is checked again after each sleep, because a pause may have begun during the sleep.
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
            # Too many permitted requests were not sent yet, so the script cannot compute a moment. Try again later.
            await asyncio.sleep(_STALE * self.rate_limit.per)

    # --- reports ---

    def report(self, number: int, counted_by: float | None, *, late: bool = False) -> None:
        """Report, with the next reservation, the time by which the API has counted a request.

        Args:
            number: the request's number.
            counted_by: the time on the event loop's clock; None if the request will never be sent.
            late: whether this time is later than Redis assumes. If True, the report is sent within a quarter of the
                window, even if this process makes no reservation.
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
        """Start a task that sends the report without making a reservation, unless a task of this kind is running."""
        if self._reporting is None or self._reporting.done():
            self._reporting = detached(self._loop.create_task, self._report_all())

    async def _report_all(self) -> None:
        # If urgent reports were added while the command was running, another command has to send them.
        while await self._command(None) is not None and self._pending.is_urgent:
            pass

    def _probe(self) -> None:
        """Send a command to find out whether Redis is back, if a probe is due and a call waits for a permit."""
        outage = self._outage
        if outage is None or outage.is_over or not self._waiting:
            return
        now = self._loop.time()
        if now >= outage.probed_at + PROBE:
            outage.probed_at = now
            self._report_now()

    # --- commands ---

    async def _command(self, reserve: int | None, *, is_ping: bool = False) -> Answer | None:
        """Send Redis one command with the whole report; return the answer, or None if Redis does not answer.

        Args:
            reserve: the number of the request to reserve a moment for; None to reserve no moment.
            is_ping: whether a failure begins an outage even if no call waits for a permit.
        """
        now = self._loop.time()
        # If the command fails, the pause is reported again. Refusals and counted requests are not reported again,
        # because the times in these reports are soon out of date.
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
            # If no call waits for a permit, the failure is ignored, because the caller may have closed the Redis
            # client. If Redis is really unreachable, the next call of `acquire` fails to reach Redis, too.
            if is_ping or reserve is not None or self._waiting or self._outage is not None:
                self._failed(error)
            return None
        self._answered(answer)
        return answer

    def _expected_generation(self, now: float) -> int | None:
        """Return the generation that Redis's data should have; None if a loss of data does not matter.

        A loss does not matter in two cases. Either Redis may have deleted the keys because they were not used for a
        long time. Or this process sends its share of the limit because of an outage of Redis: before the first request
        of the outage, the process has waited until its earlier requests had left the window.
        """
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
            # A call that waits for the local limiter sends no commands to Redis, so a timer sends the probe: a command
            # that finds out whether Redis answers again.
            detached(self._loop.call_later, PROBE + 0.001, self._probe)

    def _begin_outage(self, now: float) -> Outage:
        if self._on_unreachable != "share" or not (self.reached or self._replicas):
            # If Redis was never reached and `replicas` is None, the number of processes is unknown.
            local = None
            consequence = "nothing is sent until it does"
        else:
            replicas = self._replicas or self.processes
            limit = share(self.rate_limit, replicas)
            local = LocalLimiter(limit)
            # Other processes may have used up the limit in the current window, so the process first waits until the
            # window has passed.
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
    """Return an error's type and, if the server has answered with a code, the code, e.g. READONLY.

    The rest of the error's text is left out, because the text may contain the address and password.
    """
    code = re.match(r"[A-Z]{3,}\b", str(error))
    return f"{type(error).__name__}: {code[0]}" if code else type(error).__name__
