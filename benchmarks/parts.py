"""Functions that measure single steps of processing an event, and for comparison the least code for the same step.

`PARTS` names these functions; the section `micro` runs them under pyperf. Each of them takes a number of loops and
returns the CPU seconds of all loops, without its setup. Those that need a server find its port in the environment
variable `PORT`; this server (`benchmarks.support.sink`) only counts events.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import attrs
import httpx
import orjson
import tenacity
from aiolimiter import AsyncLimiter

from benchmarks.contestants import BATCH, VISITORS
from benchmarks.support.child_process import exit_at_end_of_input
from retailrocket_async import Batching, Buffer, Codec, LocalLimiter, Permit, RateLimit, Receipt, RetryPolicy, View
from retailrocket_async._delivery.dispatcher import Dispatcher
from retailrocket_async._fate import Fate
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.reply import Reply
from retailrocket_async._http.transport import HttpxTransport
from retailrocket_async._queue.buffer import EventBuffer

PORT = "RETAILROCKET_BENCH_PORT"
"""The environment variable with the port of the sink."""

_PLENTY = Buffer(max_events=2**40, max_bytes=2**50)
_ACCEPTED, _UNAVAILABLE = Reply(status=200), Reply(status=503)
_LIMIT = RateLimit()

Part: TypeAlias = Callable[[int], float]
Step: TypeAlias = Callable[[], Awaitable[object]]


# --- construction and encoding ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Unchecked:
    """Has the fields of `View`, but does not check them."""

    session_external_id: str
    timestamp: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    stock_id: str | None = None
    product_id: int


def _each(once: Callable[[], object]) -> Part:
    """Return the part (see `PARTS`) that calls `once` in each loop."""

    def part(loops: int) -> float:
        every = range(loops)
        begun = time.process_time()
        for _ in every:
            once()
        return time.process_time() - begun

    return part


_VISITOR = VISITORS[0]
_EVENT = View(session_external_id=_VISITOR, product_id=1)
_ENVELOPE = Codec().encode(_EVENT)
_FATE = Fate(["view"])
_READY = {"view": {"sessionExternalId": _VISITOR, "productId": 1, "timestamp": "2026-01-01T12:00:00+00:00"}}


def _encode() -> Part:
    encode = Codec().encode
    return _each(lambda: encode(_EVENT))


# --- buffering --------------------------------------------------------------------------------------------------------


class _Slotted:
    """An object with one attribute and no dictionary, the smallest that Python has."""

    __slots__ = ("event_name",)

    def __init__(self, event_name: str) -> None:
        self.event_name = event_name


def _list_append(loops: int) -> float:
    kept: list[bytes] = []
    return _each(lambda: kept.append(_ENVELOPE))(loops)


def _buffer_append(loops: int) -> float:
    buffer = EventBuffer(Batching(), _PLENTY, time.monotonic)
    return _each(lambda: buffer.append(_ENVELOPE, "view", 1))(loops)


async def _intake(loops: int) -> float:
    """Accept events without a pause between them, so that no other task runs and nothing is sent meanwhile."""
    intake = _dispatcher(_PLENTY).intake
    return _each(lambda: intake.accept_nowait(_EVENT, _ENVELOPE))(loops)


# --- requests ---------------------------------------------------------------------------------------------------------


class _Unlimited:
    """A limiter that grants every request immediately."""

    async def acquire(self) -> Permit | None:
        return None

    def pause_until(self, deadline: float) -> None:
        pass

    def throttled(self, sent_at: float) -> None:
        pass


class _Nowhere:
    """A transport that accepts everything without sending it."""

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:  # noqa: ARG002 - protocol
        on_sent()
        return _ACCEPTED

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:  # noqa: ARG002 - protocol
        return False, None

    async def aclose(self) -> None:
        pass


def _dispatcher(buffer: Buffer) -> Dispatcher:
    return Dispatcher(
        batching=Batching(), buffer=buffer, retry=RetryPolicy(), limiter=_Unlimited(), transport=_Nowhere()
    )


class _Skipping(selectors.DefaultSelector):
    """A selector that never waits; it adds the time that it should have waited to the loop's clock.

    The loop of `tests.support.virtual_time` is not used here, because its selector takes more time than the limiter.
    """

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.skipped += timeout or 0.0
        return super().select(0)


def _timeless_loop() -> asyncio.AbstractEventLoop:
    selector = _Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: time.monotonic() + selector.skipped  # type: ignore[method-assign]
    return loop


async def _awaited(once: Step, loops: int) -> float:
    """Return the CPU seconds of awaiting `once()` `loops` times; one more call before that is not measured."""
    await once()
    every = range(loops)
    begun = time.process_time()
    for _ in every:
        await once()
    return time.process_time() - begun


async def _local_limiter(loops: int) -> float:
    limiter = LocalLimiter(_LIMIT)

    async def once() -> None:
        permit = await limiter.acquire()
        assert permit is not None
        permit.sent()
        permit.done(answered=True)

    return await _awaited(once, loops)


async def _bucket(loops: int) -> float:
    return await _awaited(AsyncLimiter(_LIMIT.burst, _LIMIT.burst / _LIMIT.requests).acquire, loops)


async def _post_nowhere() -> Reply:
    return await _Nowhere().post("visitorEvents", b"[]", on_sent=lambda: None)


async def _plain_call(loops: int) -> float:
    return await _awaited(_post_nowhere, loops)


async def _tenacious_call(loops: int) -> float:
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(lambda reply: reply.status != 200),
        stop=tenacity.stop_after_attempt(20) | tenacity.stop_before_delay(300),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
    )
    return await _awaited(lambda: retrying(_post_nowhere), loops)


async def _sender(loops: int) -> float:
    dispatcher = _dispatcher(Buffer())
    return await _awaited(lambda: dispatcher.send("visitorEvents", b"[]", ["view"], ["visitor"]), loops)


def _next_wait() -> Part:
    policy = RetryPolicy()
    return _each(lambda: policy.wait_before_next(_UNAVAILABLE, attempt=3, elapsed=1.0))


def _next_wait_of_tenacity() -> Part:
    wait = tenacity.wait_random_exponential(multiplier=0.5, max=30)
    stop = tenacity.stop_after_attempt(20) | tenacity.stop_before_delay(300)
    retrying = tenacity.AsyncRetrying()

    def once() -> bool:
        past = tenacity.RetryCallState(retrying, None, (), {})
        past.attempt_number, past.start_time, past.outcome_timestamp = 3, 0.0, 1.0
        past.upcoming_sleep = wait(past)
        return stop(past)

    return _each(once)


def _body() -> bytes:
    return b"[%b]" % b",".join([_ENVELOPE] * BATCH)


def _base_url() -> str:
    return f"http://127.0.0.1:{os.environ[PORT]}/1.0/"


async def _transport(loops: int) -> float:
    body = _body()
    transport = HttpxTransport(
        Credentials("k", "p"), base_url=_base_url(), timeout=10.0, http_client=None, connections=8, http2=False
    )
    try:
        return await _awaited(lambda: transport.post("visitorEvents", body, on_sent=lambda: None), loops)
    finally:
        await transport.aclose()


async def _bare_httpx(loops: int) -> float:
    body, url = _body(), f"{_base_url()}visitorEvents?partnerId=p&apiKey=k"
    async with httpx.AsyncClient() as client:
        headers = {"content-type": "application/json"}
        return await _awaited(lambda: client.post(url, content=body, headers=headers), loops)


# --- the table of all parts -------------------------------------------------------------------------------------------


def _run(coroutine: Callable[[int], Any], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> Part:
    """Return the part (see `PARTS`) that runs `coroutine` in an event loop of its own."""

    def part(loops: int) -> float:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            seconds: float = runner.run(coroutine(loops))
            return seconds

    return part


PARTS: dict[str, dict[str, Part]] = {
    "construction, per event": {
        "a dict and the time": _each(
            lambda: {"sessionExternalId": _VISITOR, "productId": 1, "timestamp": datetime.now(UTC)}
        ),
        "an attrs class without rules": _each(lambda: _Unchecked(session_external_id=_VISITOR, product_id=1)),
        "View": _each(lambda: View(session_external_id=_VISITOR, product_id=1)),
    },
    "encoding, per event": {
        "orjson, a ready dict": _each(lambda: orjson.dumps(_READY)),
        "Codec.encode": _encode(),
    },
    "receipt, per event": {
        "an object with slots": _each(lambda: _Slotted("view")),
        "Receipt": _each(lambda: Receipt(_FATE, 0)),
    },
    "buffering, per event": {
        "list.append": _list_append,
        "the buffer alone": _buffer_append,
        "intake: checks, receipt, buffer": _run(_intake),
    },
    "limiter, per request": {
        "aiolimiter alone": _run(_bucket, _timeless_loop),
        "LocalLimiter": _run(_local_limiter, _timeless_loop),
    },
    "retries, per request": {
        "a plain call": _run(_plain_call),
        "tenacity around it": _run(_tenacious_call),
        "all of ours around it, task and outcome": _run(_sender),
    },
    "after a failure, per request": {
        "tenacity's wait and stop": _next_wait_of_tenacity(),
        "RetryPolicy": _next_wait(),
    },
    "transport, per request of 500 events": {
        "httpx alone": _run(_bare_httpx),
        "the transport": _run(_transport),
    },
}
"""The parts by group; the first part of a group is the least code for the same step as the others."""


def main() -> None:
    """Run all parts under pyperf, with the arguments of the command line."""
    # pyperf is imported only here, so that a part can run without it.
    import pyperf  # noqa: PLC0415

    # The processes that pyperf starts run this function as well, with the same standard input.
    exit_at_end_of_input()
    runner = pyperf.Runner(min_time=0.03, program_args=("-m", "benchmarks.parts"))
    for group, parts in PARTS.items():
        for name, part in parts.items():
            runner.bench_time_func(f"{group}: {name}", part)


if __name__ == "__main__":
    main()
