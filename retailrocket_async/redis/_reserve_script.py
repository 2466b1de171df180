"""Runs the script in Redis that receives a process's reports and reserves the moment of the process's next request."""

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
"""Seconds without a command after which a process no longer counts among the processes that share the limit."""

MEMORY: Final = 180.0
"""Minimum number of seconds for which Redis keeps the keys after a command.

Every pause is shorter than this time, and after a refusal the full rate is reached again before this time has passed.
"""


class Answer(NamedTuple):
    """The result of the script.

    Attributes:
        wait: seconds until the reserved moment; below 0 if no moment was reserved.
        pause: seconds until the end of the pause that applies to all processes; 0 if no pause is running.
        processes: how many processes share the limit.
        generation: a number that identifies the data in Redis. If the number changes, Redis has lost its data.
    """

    wait: float
    pause: float
    processes: int
    generation: int


class ReserveScript:
    """Runs `reserve.lua` on Redis for one process.

    Args:
        redis: the client to use.
        name: the name of the shared limit.
        rate_limit: the shared limit.
        process: the id of this process.
    """

    def __init__(self, redis: Redis | RedisCluster, name: str, rate_limit: RateLimit, process: str) -> None:
        self._redis: Any = redis
        self._process = process
        self._script = files("retailrocket_async.redis").joinpath("reserve.lua").read_text("utf-8")
        # Redis identifies scripts by their SHA-1. The hash is not used for security.
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        # The braces make a cluster store all three keys on one node, as a script requires.
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
        """Send the report to Redis, and reserve a moment.

        Args:
            generation: the generation in the last answer; None before the first answer, or if a loss of Redis's data
                does not matter.
            pause: seconds for which no process may send; None if no new pause is reported.
            refused: seconds since the last request was sent that the API refused with a 429; None if the API has
                refused no request since the last report.
            reserve: the number of the request to reserve a moment for; None to reserve no moment.
            counted: numbers of requests, each with the seconds until the API has counted the request. The seconds are
                below 0 if the request is counted already, and None if the request will never be sent.

        Raises:
            redis.RedisError: Redis refuses the command, or cannot be reached.
            OSError: Redis cannot be reached.
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
            # The connection from the pool may be older than the last restart of the server, and is then broken. The
            # second attempt opens a new connection, and fails only if the server cannot be reached.
            answer = await self._evaluate(arguments)
        wait, paused, processes, known = answer
        return Answer(wait / 1e6, paused / 1e6, processes, known)

    async def _evaluate(self, arguments: Iterable[object]) -> list[int]:
        try:
            answer: list[int] = await self._redis.evalsha(self._sha, len(self._keys), *self._keys, *arguments)
        except NoScriptError:
            # The server was restarted, or its scripts were flushed. `EVAL` loads the script again and runs the script.
            answer = await self._redis.eval(self._script, len(self._keys), *self._keys, *arguments)
        return answer

    def _id(self, number: int) -> str:
        return f"{self._process}:{number}"


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
