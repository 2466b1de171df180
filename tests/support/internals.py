"""Functions through which tests read, change or call private attributes of the package."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient, Receipt
    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._http.connections import Channel
    from retailrocket_async._http.environment import EnvironmentReader, Proxy
    from retailrocket_async._http.transport import HttpxTransport


def engine_of(client: AsyncTrackingClient) -> Any:
    """Return the engine of a client: a `Dispatcher`, or a `SpooledDispatcher` if the client has a spool."""
    return client._engine


def is_of_the_client(thing: object) -> bool:
    """Return whether the class of an object is defined in the package itself or in one of its private modules."""
    module = str(type(thing).__module__)
    return module == "retailrocket_async" or module.startswith("retailrocket_async._")


def dispatcher_of(client: AsyncTrackingClient) -> Any:
    """Return the `Dispatcher` of a client, with or without a spool."""
    engine = engine_of(client)
    return getattr(engine, "engine", engine)


async def connections_closed(client: AsyncTrackingClient) -> None:
    """Wait for the last tasks of a closing client, which close its connections."""
    await asyncio.wait(dispatcher_of(client)._shutdown._last_tasks)


def waiters_of(receipt: Receipt) -> object:
    """Return the futures of the tasks that await a receipt."""
    return receipt._fate.waiters


def channels_of(transport: HttpxTransport) -> list[Channel]:
    """Return the open channels of a transport, which must have made a request."""
    assert transport._connections is not None
    return transport._connections._open


def set_timeout(transport: HttpxTransport, seconds: float) -> None:
    """Change a transport's time-out for a whole request, from the start of the request to its end."""
    transport._total = seconds


def proxy_found_by(reader: EnvironmentReader, url: str) -> Proxy | None:
    """Return the proxy that the environment variables name for a URL, or None if they name no proxy."""
    return reader._proxy_for(httpx.URL(url))


def running_flights(dispatcher: Dispatcher) -> list[asyncio.Task[None]]:
    """Return the tasks of a dispatcher's flights, which are batches on their way to the API."""
    return [task for task in dispatcher._in_flight._tasks.values() if task is not None]


async def hooks_drained(dispatcher: Any) -> None:
    """Wait until the hooks have been called for all events that have an outcome."""
    await dispatcher._ledger.hooks.drained()


def leftovers_of(dispatcher: Any) -> dict[str, object]:
    """Return the resources of a dispatcher by name. If the dispatcher is idle or closed, every value is falsy."""
    pump, buffer, breaker = dispatcher._pump, dispatcher._buffer, dispatcher._breaker
    slots = pump._gate._wire_slots
    return {
        "places on the wire": pump._max_in_flight - slots._value,
        "waiting for a place": slots._waiters,
        "flights": dispatcher._in_flight._tasks,
        "batches in flight": dispatcher._in_flight.batches,
        "events in flight": dispatcher._in_flight.events,
        "bytes in flight": buffer._bytes_in_flight,
        "visitors": buffer._last,
        "flushes": dispatcher._ledger._flushes,
        "waiting at the breaker": breaker._waiting,
        "resting at the breaker": breaker._resting,
        "timer of the expiry": dispatcher._expiry._timer,
    }


def is_muted(client: AsyncTrackingClient) -> bool:
    """Return True if a client's ledger (the part that counts events and logs failures) writes no log records."""
    return bool(dispatcher_of(client)._ledger.quiet)
