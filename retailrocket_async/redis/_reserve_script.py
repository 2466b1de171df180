"""The one command that a process sends to Redis: it reports past requests and reserves the moment of the next one."""

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
"""Seconds for which a silent process still counts as one of those that share the limit."""

MEMORY: Final = 180.0
"""Seconds for which Redis keeps its keys at least: longer than any pause, and than the pace needs to recover."""


class Answer(NamedTuple):
    """What the script returned; times are in seconds from now.

    Attributes:
        wait: until the reserved moment; below 0 if none was reserved.
        pause: until the end of the pause that all processes keep.
        processes: how many processes share the limit.
        generation: identifies the data in Redis; another number means that Redis has lost its data.
    """

    wait: float
    pause: float
    processes: int
    generation: int


class ReserveScript:
    """Runs `reserve.lua` on Redis for one process.

    Args:
        redis: the caller's client.
        name: the name that the processes of one limit have in common.
        rate_limit: the limit that they share.
        process: the id of this process.
    """

    def __init__(self, redis: Redis | RedisCluster, name: str, rate_limit: RateLimit, process: str) -> None:
        self._redis: Any = redis
        self._process = process
        self._script = files("retailrocket_async.redis").joinpath("reserve.lua").read_text("utf-8")
        # Redis identifies scripts by this hash; it is no secret.
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        # The braces keep all keys on one node of a cluster.
        self._keys = [f"retailrocket:{{{name}}}:{part}" for part in ("limit", "requests", "processes")]
        per, jitter = _micros(rate_limit.per), _micros(rate_limit.jitter)
        keep = _micros(MEMORY + 4 * (rate_limit.per + rate_limit.jitter))
        remembered = _micros(max(_REMEMBERED, 4 * rate_limit.per))
        self._fixed = [rate_limit.requests, per, jitter, rate_limit.burst, keep, process, remembered]

    async def run(
        self,
        *,
        generation: int | None,
        pause: float | None,
        refused: float | None,
        reserve: int | None,
        counted: Iterable[tuple[int, float | None]],
    ) -> Answer:
        """Report to Redis, and reserve a moment.

        Args:
            generation: the generation of the last answer; None before the first answer, and if it does not matter.
            pause: seconds for which no process may send; None if no new pause is reported.
            refused: seconds since a request was sent that the API refused with a 429; None if there was none.
            reserve: the number of the request to reserve a moment for; None to reserve nothing.
            counted: numbers of requests, each with the seconds until the API has counted it: below 0 if it already
                has, None if the request will never be sent.

        Raises:
            redis.RedisError: Redis refuses, or cannot be reached. An `OSError` is possible as well.
        """
        arguments = [
            *self._fixed,
            "" if generation is None else generation,
            "" if pause is None else _micros(pause),
            "" if refused is None else _micros(refused),
            "" if reserve is None else self._id(reserve),
        ]
        for number, until in counted:
            arguments += [self._id(number), "" if until is None else _micros(until)]
        try:
            answer = await self._evaluate(arguments)
        except RedisConnectionError:
            # A pooled connection may be older than the server. Only a new connection shows whether a server is there.
            answer = await self._evaluate(arguments)
        wait, paused, processes, known = answer
        return Answer(wait / 1e6, paused / 1e6, processes, known)

    async def _evaluate(self, arguments: Iterable[object]) -> list[int]:
        try:
            answer: list[int] = await self._redis.evalsha(self._sha, len(self._keys), *self._keys, *arguments)
        except NoScriptError:
            # The server is new, or its scripts were flushed. This command loads the script as well.
            answer = await self._redis.eval(self._script, len(self._keys), *self._keys, *arguments)
        return answer

    def _id(self, number: int) -> str:
        return f"{self._process}:{number}"


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
