"""Reads the private state of the engine for tests, by names that say what is read.

Tests look at private attributes only through these functions. If the engine's parts change, only this module follows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

    import httpx

    from retailrocket_async import AsyncTrackingClient
    from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.hooks import Hooks
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.rate_limiter import LocalLimiter
    from retailrocket_async._http.credentials import Credentials
    from retailrocket_async._http.environment import Environment
    from retailrocket_async._http.transport import HttpxTransport
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._queue.lane import Lane
    from retailrocket_async._receipt import Receipt
    from tests.support.fakes import Engine


# --- the engine's parts ---


def buffer_of(engine: Engine) -> EventBuffer:
    """Return the buffer of an engine."""
    return engine.dispatcher._buffer


def breaker_of(engine: Engine) -> CircuitBreaker:
    """Return the circuit breaker of an engine."""
    return engine.dispatcher._breaker


def hooks_of(engine: Engine) -> Hooks:
    """Return the hooks of an engine."""
    return engine.dispatcher._ledger.hooks


def limiter_of(engine: Engine) -> Any:
    """Return the limiter that an engine asks for permits."""
    return engine.dispatcher._sender._limiter


# --- tasks, futures and timers ---


def flights_of(engine: Engine) -> list[Flight]:
    """Return the flights of an engine, oldest first."""
    return list(engine.dispatcher._flights)


def flight_tasks(engine: Engine) -> list[asyncio.Task[None] | None]:
    """Return the task of each flight, oldest first."""
    return list(engine.dispatcher._flights.values())


def pump_task(engine: Engine) -> asyncio.Task[None] | None:
    """Return the task that takes batches from the buffer; None before the first."""
    return engine.dispatcher._pump


def hooks_task(hooks: Hooks) -> asyncio.Task[None] | None:
    """Return the task that calls the hooks; None before the first call."""
    return hooks._task


def hooks_ending_task(engine: Engine) -> asyncio.Task[None]:
    """Return the task of a close that waits for the hooks to end."""
    return engine.dispatcher._shutdown._last_tasks[1]


def free_wire_slots(engine: Engine) -> int:
    """Return how many more requests may be on the wire."""
    return engine.dispatcher._sender._wire_slots._value


def waiting_at_breaker(engine: Engine) -> Collection[asyncio.Future[None]]:
    """Return the futures of the tasks that wait until the circuit breaker admits them; a live view."""
    return engine.dispatcher._breaker._waiting


def callers_waiting_for_space(engine: Engine) -> int:
    """Return the number of calls of `track` that wait until the buffer has space, as the intake holds them."""
    return len(engine.dispatcher.intake._waiters)


def queued_for_hooks(hooks: Hooks) -> int:
    """Return the number of items that wait for the hooks."""
    return len(hooks._queue)


def flushes_waited_for(ledger: Ledger) -> int:
    """Return the number of flushes that wait for their events."""
    return len(list(ledger._flushes))


def paused_until(limiter: LocalLimiter) -> float:
    """Return the end of a limiter's pause (loop time)."""
    return limiter._paused_until


def running_key_call(credentials: Credentials) -> Any:
    """Return the call of the `api_key` function that is under way; None if there is none."""
    return credentials._calling


def awaiting(receipt: Receipt) -> int:
    """Return how many tasks await a receipt."""
    return len(receipt._waiters or ())


def codec_of(client: AsyncTrackingClient) -> Any:
    """Return the codec that a client encodes its events with."""
    return client._codec


def httpx_client_of(transport: HttpxTransport, environment: Environment) -> httpx.AsyncClient:
    """Return a client of httpx as `transport` makes one in that environment."""
    return transport._make_client(environment)


def scheduled_timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the running loop, cancelled ones included."""
    timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return timers


# --- the buffer's tables ---


def lanes_of(buffer: EventBuffer) -> Mapping[Hashable, Lane]:
    """Return the lanes of a buffer by their keys."""
    return buffer._lanes


def ready_lanes(buffer: EventBuffer) -> Collection[Hashable]:
    """Return the keys of the lanes that a batch may be taken from."""
    return buffer._ready.keys()


def busy_lanes(buffer: EventBuffer) -> Collection[Hashable]:
    """Return the keys of the lanes that have a batch in flight."""
    return buffer._busy


def ready_counters(buffer: EventBuffer) -> dict[str, int]:
    """Return the buffer's counters of its ready lanes; they do not include what `EventBuffer.grow` has appended."""
    return {
        "batches": buffer._ready_batches,
        "events": buffer._ready_events,
        "bytes": buffer._ready_bytes,
        "urgent": buffer._urgent_batches,
    }


def uncounted_growth(buffer: EventBuffer) -> tuple[int, int]:
    """Return the events and bytes that `EventBuffer.grow` has appended since the counters were last updated."""
    return buffer.events - buffer._events, buffer.bytes - buffer._bytes


def ordered_batches(buffer: EventBuffer) -> int:
    """Return the number of batches in the buffer's table by age."""
    return len(buffer._order)


def ages_kept(buffer: EventBuffer) -> int:
    """Return the length of the heap by which the buffer finds its oldest event."""
    return len(buffer._ages)


def ranked(buffer: EventBuffer) -> tuple[int, int] | None:
    """Return the events and bytes in the table of events to evict; None if the buffer evicts none."""
    ranks = buffer._ranks
    return None if ranks is None else (sum(map(len, ranks._waiting.values())), ranks._bytes.total())
