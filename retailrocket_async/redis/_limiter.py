"""The limiter that shares one request limit among all processes of a shop."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, Literal, get_args

from redis.asyncio import Redis, RedisCluster

from retailrocket_async import ConfigurationError, RateLimit, WrongLoopError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.redis._member import Member

if TYPE_CHECKING:
    from retailrocket_async import Permit

OnUnreachable = Literal["share", "wait", "raise"]


class RedisLimiter(Uncopyable):
    """Limits the requests of any number of processes together, through Redis (6 or newer) or Valkey.

    The limiter sends nothing to Redis before the first request. The limiter never closes the Redis client: close the
    Redis client after the tracking clients that use the limiter.

    Args:
        redis: a `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`.
        rate_limit: the limit of all processes together; default `RateLimit()`, 50 requests a second. All processes must
            use the same limit.
        name: the name of the shared limit, 1 to 200 characters without braces; default ``"shop"``. If several shops use
            one Redis, each shop needs a different name, e.g. its partner id.
        replicas: the largest number of processes that share the limit, 1 or more; used only while Redis does not
            answer. Default None: the largest number of processes that Redis counted in the last minute.
        on_unreachable: what the limiter does while Redis does not answer or refuses commands. ``"share"`` (default):
            each process sends at most 0.9 × `rate_limit` / `replicas`; if Redis has never answered and `replicas` is
            None, nothing is sent, because the number of processes is unknown. ``"wait"``: nothing is sent.
            ``"raise"``: `acquire` raises, and the client retries according to its retry policy.
        timeout: seconds, above 0, that a command to Redis may take, including the time to connect; default 0.25.

    Raises:
        ConfigurationError: a value is out of range.
        WrongLoopError: raised by the methods if another event loop that is not closed uses the limiter.
    """

    _instead = "make one in each process, with the same name: Redis holds what they share"

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        redis: Redis | RedisCluster,
        rate_limit: RateLimit = RateLimit(),  # noqa: B008 - frozen
        *,
        name: str = "shop",
        replicas: int | None = None,
        on_unreachable: OnUnreachable = "share",
        timeout: float = 0.25,
    ) -> None:
        _check(redis, rate_limit, name=name, replicas=replicas, on_unreachable=on_unreachable, timeout=timeout)
        self.rate_limit = rate_limit
        self._redis = redis
        self._name = name
        self._replicas = replicas
        self._on_unreachable: OnUnreachable = on_unreachable
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._member: Member | None = None

    async def acquire(self) -> Permit | None:
        """Wait until one request may be made, and return a permit for this request.

        Waiting calls are served in their order.

        Raises:
            RedisUnreachableError: Redis does not answer within `timeout`, and `on_unreachable` is ``"raise"``.
        """
        return await self._bind().acquire()

    async def ping(self) -> None:
        """Check that Redis answers, so that a wrong address or password is found before the first event.

        Raises:
            RedisUnreachableError: Redis does not answer within `timeout`, or refuses the command. The error's message
                contains the type of the original error.
        """
        await self._bind().ping()

    def pause_until(self, deadline: float) -> None:
        """Grant no permits in any process before `deadline`. A pause that ends after `deadline` stays unchanged.

        Args:
            deadline: the end of the pause, on the event loop's clock. A deadline more than 60 s from now is reduced to
                60 s from now.
        """
        self._bind().pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Pause and slow down all processes, because the API refused a request with a 429.

        Args:
            sent_at: when the request was sent, on the event loop's clock. If the request was sent before the last
                refusal, the two refusals count as one incident, and the processes are not slowed down again.
        """
        self._bind().throttled(sent_at)

    def _bind(self) -> Member:
        loop = asyncio.get_running_loop()
        if self._member is None or self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise WrongLoopError("this limiter belongs to another event loop: create one limiter for each loop")
            self._loop = loop
            self._member = Member(
                self._redis,
                self.rate_limit,
                name=self._name,
                replicas=self._replicas,
                on_unreachable=self._on_unreachable,
                timeout=self._timeout,
                before=self._member,
            )
        return self._member


def _check(  # noqa: PLR0913 - the arguments of the constructor
    redis: object, rate_limit: object, *, name: object, replicas: object, on_unreachable: object, timeout: object
) -> None:
    if not isinstance(redis, (Redis, RedisCluster)):
        raise ConfigurationError("redis must be a redis.asyncio.Redis or redis.asyncio.RedisCluster")
    if not isinstance(rate_limit, RateLimit):
        raise ConfigurationError(f"rate_limit must be a RateLimit, not {type(rate_limit).__name__}")
    if not isinstance(name, str) or not re.fullmatch(r"[^{}]{1,200}", name):
        raise ConfigurationError("name must be a str of 1 to 200 characters without braces")
    check_texts(name=name, spaces=True)
    if replicas is not None and (type(replicas) is not int or replicas < 1):
        raise ConfigurationError(f"replicas must be an int of 1 or more, or None, not {replicas!r}")
    if on_unreachable not in get_args(OnUnreachable):
        raise ConfigurationError(f"on_unreachable must be 'share', 'wait' or 'raise', not {on_unreachable!r}")
    if type(timeout) not in (int, float) or not 0 < timeout < math.inf:  # type: ignore[operator]
        raise ConfigurationError(f"timeout must be a number of seconds above 0, not {timeout!r}")
