"""Keeps the request limit: in any time window of `per` seconds, the *server* sees at most `requests` requests arrive.

A token bucket alone does not keep the limit: `AsyncLimiter(50, 1)` lets 99 requests through in its first second. The
limiter therefore consists of two parts:

- An aiolimiter bucket with a small burst spreads the permits evenly over time. The burst makes up for timers that fire
  late.
- Slots count the requests that the server may still count in its current window; there are at most `requests` slots.
  A request takes a slot when its permit is granted. The slot is free again `per + jitter` seconds after the body was
  written, or `per` seconds after the answer, whichever is earlier. The time is not counted from the grant, so a blocked
  event loop or a slow connection cannot let too many requests arrive together. A request that ended without an answer
  may still be on its way, so its slot is freed `per + jitter` seconds after the body was written or, at the latest,
  after the request ended. The limit is kept as long as the network's delays differ by at most `jitter`.

A pause (`Retry-After`) is a deadline that can only move later: an answer cannot shorten the pause that another answer
has demanded.

If the server still answers 429, the server's limit is lower than ours, or other programs use a part of the limit. All
429 answers to requests that were sent before the end of an incident belong to that incident. Each incident pauses all
requests, and the pauses of incidents in a row grow. Each incident also slows down the sending of requests once; the
pace recovers slowly. So a stream of 429 answers never causes more requests, and the limiter adapts to a limit that is
lower than configured.
"""

import asyncio
import math
from typing import Protocol, runtime_checkable

import attrs
from aiolimiter import AsyncLimiter

from retailrocket_async._errors import ConfigurationError, WrongLoopError
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async._runtime.wakeup import Wakeup

MAX_PAUSE = 60.0
"""Longest pause in seconds, whatever the server asks for."""

_CUT = 0.7
"""Factor by which the pace (requests per second) is multiplied at each incident."""

_SLOWEST = 0.1
"""Slowest pace, as a fraction of the full pace."""

_RECOVERY = 0.02
"""Fraction of the full pace that is regained each second: the pace is full again 15 s after one incident, and 45 s
after the slowest pace."""

_LONGEST_PENALTY = 8.0
"""Longest pause in seconds after an incident without `Retry-After`. It is short because another process may have caused
the incident."""


@attrs.frozen(kw_only=True)
class RateLimit:
    """How many requests the shop may make.

    Attributes:
        requests: largest number of requests in any window of `per` seconds, 1 or more; default 50 (API document,
            "Limits"). The shop's account manager can raise this limit. All processes of a shop share this limit, so
            configure a part of the limit in each process.
        per: length of the window in seconds, above 0; default 1.
        burst: number of requests that may be sent at once after a time without requests, 1 to `requests`; default a
            tenth of `requests`, at least 1. The default makes up for timers that fire late, and is small enough not to
            overload the server.
        jitter: seconds, 0 or more, by which the network's delays of two requests may differ while the limit is still
            kept; default 0.025. A larger value is safer but slower: about `requests / (per + jitter)` requests a second
            are made, which is 97.5 % of the limit by default, and more if answers arrive within `jitter` seconds.

    Raises:
        ConfigurationError: a value outside its range.
    """

    requests: int = 50
    per: float = 1.0
    burst: int = attrs.field(default=attrs.Factory(lambda self: _tenth(self.requests), takes_self=True))
    jitter: float = 0.025

    def __attrs_post_init__(self) -> None:
        if type(self.requests) is not int or self.requests < 1:
            raise ConfigurationError(f"RateLimit.requests must be an int of 1 or more, not {self.requests!r}")
        if not _is_seconds(self.per) or self.per <= 0:
            raise ConfigurationError(f"RateLimit.per must be a number of seconds above 0, not {self.per!r}")
        if type(self.burst) is not int or not 1 <= self.burst <= self.requests:
            raise ConfigurationError(f"RateLimit.burst must be an int from 1 to requests, not {self.burst!r}")
        if not _is_seconds(self.jitter):
            raise ConfigurationError(f"RateLimit.jitter must be a number of seconds, 0 or more, not {self.jitter!r}")


class Permit(Protocol):
    """The right to make one request; the holder reports when the request was sent and when it was over."""

    def sent(self) -> None:
        """Report that the request's body was written; called at most once."""
        ...

    def done(self, *, answered: bool = False) -> None:
        """Report that the request is over; called exactly once, last.

        Args:
            answered: whether the server answered, which proves that the server has counted the request. False if the
                request failed or was cancelled, because the request may then still be on its way.
        """
        ...


@runtime_checkable
class Limiter(Protocol):
    """Decides when a client may make its next request; several clients of one event loop may share a limiter."""

    async def acquire(self) -> Permit | None:
        """Wait for the right to make one request, and return a permit; callers are served in the order of their calls.

        Called once for every attempt, retries included. If the call is cancelled, no permit is used up. Returns None
        if the limiter need not know when the request was sent and answered.
        """
        ...

    def pause_until(self, deadline: float) -> None:
        """Grant no permit before `deadline` (seconds on the event loop's clock).

        If several calls set deadlines, the latest deadline counts.
        """
        ...

    def throttled(self, sent_at: float) -> None:
        """Report that the server answered 429 (too many requests), so that the limiter slows down.

        Args:
            sent_at: when that request was sent (seconds on the event loop's clock). Refused requests that were sent
                together count as one incident.
        """
        ...


class LocalLimiter(Uncopyable):
    """Limits the requests of one process; the module's docstring describes the method.

    Args:
        rate_limit: the limit to keep. With None the number of requests is not limited, and only pauses delay them.

    Raises:
        WrongLoopError: from the methods, if the limiter was used in another event loop that is not closed.
    """

    _instead = "make one in each process; RedisLimiter shares a limit between processes"

    def __init__(self, rate_limit: RateLimit | None) -> None:
        self.rate_limit = rate_limit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._paused_until = -math.inf
        self._slots: list[_Slot] = []
        self._wakeup = Wakeup()
        self._drawn = False
        self._granted_at = -math.inf
        self._slow_until = self._incident_over = -math.inf
        self._penalty = 0.0

    async def acquire(self) -> Permit | None:
        """Wait for the right to make one request, and return a permit; callers are served in order."""
        loop = self._bind()
        # The lock admits one caller at a time, in order: aiolimiter does not keep the order, and the code below decides
        # for one caller only.
        async with self._turn:
            if self._bucket is not None and not self._drawn:
                await self._bucket.acquire()
                # A token cannot be returned to the bucket. If this caller is cancelled below, the next caller uses the
                # token.
                self._drawn = True
            while (wake_at := self._open_at(loop.time())) > loop.time():
                await self._wakeup.wait(wake_at)
            if self.rate_limit is None:
                return None
            self._drawn = False
            self._granted_at = loop.time()
            slot = _Slot(loop, self._wakeup, self.rate_limit)
            self._slots.append(slot)
            return slot

    def pause_until(self, deadline: float) -> None:
        """Grant no permit before `deadline` (loop time), at most 60 s from now.

        If several calls set deadlines, the latest deadline counts.
        """
        now = self._bind().time()
        self._paused_until = max(self._paused_until, min(deadline, now + MAX_PAUSE))

    def throttled(self, sent_at: float) -> None:
        """Pause and slow down because the server answered 429 to a request; see the module's docstring."""
        now = self._bind().time()
        if sent_at > self._incident_over:
            per = self.rate_limit.per if self.rate_limit is not None else 1.0
            in_a_row = now < self._incident_over + 2 * per
            self._penalty = min(_LONGEST_PENALTY, self._penalty * 2) if in_a_row else per
            pace = max(_SLOWEST, self.pace(now) * _CUT)
            self.pause_until(now + self._penalty)
            # The pace grows linearly, so it is enough to store the time at which the pace will be full again.
            self._incident_over = now
            self._slow_until = now + (1.0 - pace) / _RECOVERY
        # The pace does not recover during a pause, even if a later answer of the same incident prolongs the pause.
        longer = max(0.0, self._paused_until - self._incident_over)
        self._incident_over += longer
        self._slow_until += longer

    def pace(self, now: float) -> float:
        """Return the pace at `now` (loop time) as a fraction of the full pace, from 0.1 to 1."""
        before_full = self._slow_until - max(now, self._incident_over)
        return min(1.0, 1.0 - before_full * _RECOVERY)

    def _open_at(self, now: float) -> float:
        """Return when the next permit may be granted (loop time); infinity if a request must first be sent or end."""
        if self.rate_limit is None:
            return self._paused_until
        opens = self._paused_until
        if now < self._slow_until:
            opens = max(opens, self._granted_at + self.rate_limit.per / self.rate_limit.requests / self.pace(now))
        self._slots = [slot for slot in self._slots if slot.expires > now]
        if len(self._slots) < self.rate_limit.requests:
            return opens
        return max(opens, min(slot.expires for slot in self._slots))

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise WrongLoopError("this limiter belongs to another event loop: create one limiter for each loop")
            self._start(loop)
        return loop

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare the limiter for a new loop; keep the slots of old requests that the server may still count."""
        self._loop = loop
        self._turn = asyncio.Lock()
        self._bucket: AsyncLimiter | None = None
        self._drawn = False
        # The clocks of two loops may differ by any amount. A closed loop sends nothing, so no old slot and no old pause
        # may last longer than a slot or a pause that begins now.
        now = loop.time()
        self._paused_until = min(self._paused_until, now + MAX_PAUSE)
        self._granted_at = min(self._granted_at, now)
        self._incident_over = min(self._incident_over, now)
        self._slow_until = min(self._slow_until, now + (1.0 - _SLOWEST) / _RECOVERY)
        if (limit := self.rate_limit) is not None:
            self._bucket = AsyncLimiter(limit.burst, limit.burst * limit.per / limit.requests)
            for slot in self._slots:
                slot.expires = min(slot.expires, now + limit.per + limit.jitter)


class _Slot:
    """The permit of one request; the server may count the request in its window until `expires` (loop time)."""

    __slots__ = ("_limit", "_loop", "_wakeup", "expires")

    def __init__(self, loop: asyncio.AbstractEventLoop, wakeup: Wakeup, limit: RateLimit) -> None:
        self._loop = loop
        self._wakeup = wakeup
        self._limit = limit
        # The request is not sent yet, so the server may receive the request at any later time.
        self.expires = math.inf

    def sent(self) -> None:
        self._expire_at(self._loop.time() + self._limit.per + self._limit.jitter)

    def done(self, *, answered: bool = False) -> None:
        self._expire_at(self._loop.time() + self._limit.per + (0.0 if answered else self._limit.jitter))

    def _expire_at(self, when: float) -> None:
        if when < self.expires:
            self.expires = when
            self._wakeup.set()


def _tenth(requests: object) -> int:
    return max(1, requests // 10) if isinstance(requests, int) else 1


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]
