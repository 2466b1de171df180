"""Functions that read the private state of the engine for tests.

Tests read private attributes only through these functions. If the engine changes, only this module has to change.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

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
    return engine.dispatcher._pump._gate._limiter


# --- tasks, futures and timers ---


def flights_of(engine: Engine) -> list[Flight]:
    """Return the flights of an engine, oldest first. A flight is a batch on its way to the API."""
    return list(engine.dispatcher._in_flight)


def flight_tasks(engine: Engine) -> list[asyncio.Task[None] | None]:
    """Return the task of each flight (a batch on its way to the API), the oldest flight first."""
    return list(engine.dispatcher._in_flight._tasks.values())


def pump_task(engine: Engine) -> asyncio.Task[None] | None:
    """Return the task that takes batches from the buffer; None if the task was never started."""
    return engine.dispatcher._pump._task


def hooks_task(hooks: Hooks) -> asyncio.Task[None] | None:
    """Return the task that calls the hooks; None if no hook was called yet."""
    return hooks._task


def hooks_ending_task(engine: Engine) -> asyncio.Task[None]:
    """Return the task of a closing engine that waits until all hooks have returned."""
    return engine.dispatcher._shutdown._last_tasks[1]


def free_wire_slots(engine: Engine) -> int:
    """Return how many requests may be sent in addition to the requests in flight."""
    return engine.dispatcher._pump._gate._wire_slots._value


def waiting_at_breaker(engine: Engine) -> Collection[object]:
    """Return the circuit breaker's own collection of futures, one for each task that waits for the breaker."""
    return engine.dispatcher._breaker._waiting


def callers_waiting_for_space(engine: Engine) -> int:
    """Return the number of calls of `track` that wait in the intake until the buffer has space."""
    return len(engine.dispatcher.intake._callers)


def queued_for_hooks(hooks: Hooks) -> int:
    """Return the number of items for which the hooks have still to be called."""
    return len(hooks._queue)


def flushes_waited_for(ledger: Ledger) -> int:
    """Return the number of flushes that wait until their events have an outcome."""
    return len(list(ledger._flushes))


def paused_until(limiter: LocalLimiter) -> float:
    """Return when a limiter's pause ends, in seconds of the event loop's clock."""
    return limiter._paused_until


def running_key_call(credentials: Credentials) -> Any:
    """Return the running call of the `api_key` function; None if no call is running."""
    return credentials._calling


def awaiting(receipt: Receipt) -> int:
    """Return how many tasks await a receipt."""
    return sum(place == receipt._place for place in receipt._fate.waiters.values())


def codec_of(client: AsyncTrackingClient) -> Any:
    """Return the codec that a client encodes its events with."""
    return client._codec


def httpx_client_of(transport: HttpxTransport, environment: Environment) -> httpx.AsyncClient:
    """Return the httpx client that `transport` would create if these environment variables were set."""
    return transport._make_client(environment)


def scheduled_timers() -> list[asyncio.TimerHandle]:
    """Return all timers of the running loop, including cancelled timers."""
    timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return timers


# --- the buffer's tables ---


def visitors_of(buffer: EventBuffer) -> int:
    """Return the number of visitors that the buffer keeps in order."""
    return len(buffer._last)


def events_with_one_fate(buffer: EventBuffer) -> int:
    """Return the largest number of events, waiting or evicted, that share a fate in the buffer."""
    return max(len(run.fate.names) for run in buffer._order)


def ordered_batches(buffer: EventBuffer) -> int:
    """Return the number of batches in the buffer's table that is sorted by age."""
    return len(buffer._order)


def ages_kept(buffer: EventBuffer) -> int:
    """Return the length of the heap by which the buffer finds its oldest event."""
    return len(buffer._ages)


def ranked(buffer: EventBuffer) -> tuple[int, int] | None:
    """Return the numbers of events and bytes that the buffer may evict; None if the buffer never evicts."""
    ranks = buffer._ranks
    return None if ranks is None else (sum(map(len, ranks._waiting.values())), ranks._bytes.total())
