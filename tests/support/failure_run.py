"""Runs clients through failures, and collects all texts that the clients and their results print."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs

from retailrocket_async import AsyncTrackingClient, RetryPolicy, Search, SetContact, View
from tests.support.sinks import KEY, PERSONAL, Sinks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from tests.support.raw_server import Arrived

QUICK = RetryPolicy(max_attempts=2, initial_backoff=0.0, max_backoff=0.0, max_halt=0.0)
ONCE = attrs.evolve(QUICK, max_attempts=1)
VISITOR = PERSONAL["session_external_id"]


def events() -> list[Any]:
    """Return events with personal data in every field."""
    contact = {name: PERSONAL[name] for name in ("contact_external_id", "email", "phone")}
    return [
        View(session_external_id=VISITOR, product_id=1),
        Search(session_external_id=VISITOR, search_phrase=PERSONAL["search_phrase"]),
        SetContact(session_external_id=VISITOR, custom_data={"likes": PERSONAL["custom_data"]}, **contact),
    ]


class Run:
    """Makes clients, calls their methods, and collects all output.

    Attributes:
        sinks: the collected texts.
        met: names of the failures and outcomes that happened.
    """

    def __init__(self, sinks: Sinks) -> None:
        self.sinks = sinks
        self.met: set[str] = set()
        self._watched = False

    async def attempt(self, action: Awaitable[object]) -> None:
        """Await a call that may fail, and collect its result or its error in `sinks`."""
        try:
            self.sinks.thing(await action)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - every error is collected
            self.met.add(type(error).__name__)
            self.sinks.error(error)

    @asynccontextmanager
    async def client(self, url: str, close_in: float = 5.0, **options: Any) -> AsyncIterator[AsyncTrackingClient]:
        """Make a client for the block, close the client, and collect its close report in `sinks`.

        Args:
            url: the base URL.
            close_in: the time-out of the close, in seconds.
            options: further arguments of the client.
        """
        # Every second client gets the package's observer, which switches the httpx instrumentation off for the client's
        # requests. So this instrumentation traces the other clients.
        self._watched = not self._watched
        observer = self.sinks.observer() if self._watched else None
        options = {"retry": QUICK, "rate_limit": None, "observer": observer, **options}
        client = AsyncTrackingClient(options.pop("api_key", KEY), "partner", base_url=url, **options)
        self.sinks.thing(client, *(option for option in options.values() if not callable(option)))
        try:
            yield client
        finally:
            self.sinks.everything_alive()
            report = await client.aclose(close_in)
            self.sinks.thing(client, report, report.stats, *report.undelivered)
            self.met |= {str(way) for way in report.stats.requests_by_status}

    async def use(self, client: AsyncTrackingClient) -> None:
        """Send events with `send`, `send_batch` and `track_many`."""
        await self.attempt(client.send(events()[0]))
        await self.attempt(client.send_batch(events()))
        *_, receipt = await client.track_many(events())
        await self.attempt(receipt.delivered())
        self.sinks.thing(receipt, receipt.outcome)
        self.met.add((getattr(receipt.outcome, "failure", None) or "").partition(":")[0])

    async def against(self, url: str, **options: Any) -> None:
        """Make a client for a base URL, and send events with this client; see the methods `client` and `use`."""
        async with self.client(url, **options) as client:
            await self.use(client)


def status_in(request: Arrived) -> int:
    """Return the HTTP status that the last part of a request's base URL names."""
    return int(request.path.split("/")[-2])
