"""The one command that a process gives to Redis: what became of its requests, and the booking of the next one."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis, RedisCluster

    from retailrocket_async import RateLimit

_REMEMBERED: Final = 60.0
"""Seconds for which a process that says nothing counts as one of those that share the limit."""

MEMORY: Final = 180.0
"""Seconds for which Redis remembers at least: longer than any pause, and than the pace takes to come back."""


class Answer(NamedTuple):
    """What Redis says: times in seconds from now.

    Attributes:
        wait: until the moment that was booked; below 0 where none was.
        pause: until the end of the pause that all processes keep.
        processes: how many share the limit.
        generation: the same number as long as Redis remembers.
    """

    wait: float
    pause: float
    processes: int
    generation: int


class Reservations:
    """The bookings of one process.

    Args:
        redis: the caller's client.
        name: what the processes have in common.
        rate_limit: the limit that they share.
        process: what tells this process from all others.
    """

    def __init__(self, redis: Redis | RedisCluster, name: str, rate_limit: RateLimit, process: str) -> None:
        self._redis: Any = redis
        self._process = process
        self._script = files("retailrocket_async.redis").joinpath("reserve.lua").read_text("utf-8")
        # Redis knows scripts by this hash; it is no secret.
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        # The braces keep all of it on one node of a cluster.
        self._keys = [f"retailrocket:{{{name}}}:{part}" for part in ("limit", "requests", "processes")]
        per, jitter = _micros(rate_limit.per), _micros(rate_limit.jitter)
        keep = _micros(MEMORY + 4 * (rate_limit.per + rate_limit.jitter))
        remembered = _micros(max(_REMEMBERED, 4 * rate_limit.per))
        self._fixed = [rate_limit.requests, per, jitter, rate_limit.burst, keep, process, remembered]

    async def call(
        self,
        *,
        generation: int | None,
        pause: float | None,
        refused: float | None,
        book: int | None,
        counted: Iterable[tuple[int, float | None]],
    ) -> Answer:
        """Tell, and book.

        Args:
            generation: what the last answer said; None before the first one, and where it does not matter.
            pause: seconds for which nobody shall send; None where there is nothing new to tell.
            refused: seconds since a request was sent that was one too many; None where none was.
            book: the number of the request to book for; None to book nothing.
            counted: numbers of requests, and in how many seconds the API has counted them; below 0 where it has, None
                where they will never be sent.

        Raises:
            redis.RedisError: Redis refuses, or cannot be reached; an `OSError` may come as well.
        """
        arguments = [
            *self._fixed,
            "" if generation is None else generation,
            "" if pause is None else _micros(pause),
            "" if refused is None else _micros(refused),
            "" if book is None else self._id(book),
        ]
        for number, until in counted:
            arguments += [self._id(number), "" if until is None else _micros(until)]
        try:
            answer = await self._run(arguments)
        except RedisConnectionError:
            # A connection of the pool may be older than the server; a new one tells whether there is a server.
            answer = await self._run(arguments)
        wait, paused, processes, known = answer
        return Answer(wait / 1e6, paused / 1e6, processes, known)

    async def _run(self, arguments: Iterable[object]) -> list[int]:
        try:
            answer: list[int] = await self._redis.evalsha(self._sha, len(self._keys), *self._keys, *arguments)
        except NoScriptError:
            # A new server, or one whose scripts were flushed; this loads it as well.
            answer = await self._redis.eval(self._script, len(self._keys), *self._keys, *arguments)
        return answer

    def _id(self, number: int) -> str:
        return f"{self._process}:{number}"


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
