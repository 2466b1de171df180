"""The lifespan that wraps an ASGI application without its own lifespan, checked message by message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import AsyncTrackingClient, ConfigurationError, UsageError
from retailrocket_async.asgi import RetailRocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def make(**options: Any) -> AsyncTrackingClient:
    """Return a client that no test uses for events."""
    return AsyncTrackingClient("key", "shop", **options)


async def live(rocket: RetailRocket, scope: dict[str, Any], seen: list[Any]) -> None:
    """Start and end an application, and append to `seen` the messages and scopes of the application and server."""

    async def app(scope: MutableMapping[str, Any], _: object, __: Send) -> None:
        seen.append((scope["type"], repr(rocket.client(scope))))

    async def receive() -> dict[str, Any]:
        # `receive` is called a second time after the start, so a request can be made here.
        if scope.get("state"):
            await whole({"type": "http", "state": scope["state"].copy()}, receive, send)
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        seen.append(dict(message))

    whole = rocket.around(app)
    await whole(scope, receive, send)


async def test_the_client_lives_between_start_and_end() -> None:
    """If the application runs, requests find the client in their state; the application gets no lifespan events."""
    seen: list[Any] = []
    scope: dict[str, Any] = {"type": "lifespan", "state": {}}
    await live(RetailRocket(make), scope, seen)

    started, (kind, client), ended = seen
    assert (started, kind, ended) == (
        {"type": "lifespan.startup.complete"},
        "http",
        {"type": "lifespan.shutdown.complete"},
    )
    assert "open" in client or "new" in client
    assert "closed" in repr(scope["state"]["tracking"])


@pytest.mark.parametrize(
    ("options", "scope", "reason"),
    [({"batching": None}, {"state": {}}, "batching"), ({}, {}, "lifespan state")],
    ids=["settings", "no state"],
)
async def test_a_start_that_fails_is_told_to_the_server(
    options: dict[str, Any], scope: dict[str, Any], reason: str
) -> None:
    """If the client cannot be created, the server gets `lifespan.startup.failed` with the reason."""
    seen: list[Any] = []
    with pytest.raises(ConfigurationError, match=reason):
        await live(RetailRocket(make, **options), {"type": "lifespan", **scope}, seen)

    [message] = seen
    assert message["type"] == "lifespan.startup.failed"
    assert reason in message["message"]


def test_without_the_lifespan_there_is_no_client() -> None:
    """If no lifespan was run, asking for the client raises an error with the name that `RetailRocket` was given."""
    rocket = RetailRocket(name="other")

    for ask in (rocket.client, rocket.threadsafe):
        with pytest.raises(UsageError, match="'other'"):
            ask({"type": "http", "state": {"tracking": make()}})


async def test_who_is_cancelled_closes_the_client() -> None:
    """If the application is cancelled, the client is closed."""
    opened: asyncio.Future[AsyncTrackingClient] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with RetailRocket(make).opened() as client:
            opened.set_result(client)
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    client = await opened
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert "closed" in repr(client)
