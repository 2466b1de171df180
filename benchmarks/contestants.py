"""The compared clients: the least possible code, our client used in three ways, other libraries, and code by hand.

Each contestant is a function that runs in a process of its own (`benchmarks.support.child_process`). It first sends
some events to warm up imports, caches and the connection. Then it sends the number of events asked for, and returns
their cost. All events have the same content, a view of a product page, made anew for each event; other libraries add
their own fields.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from benchmarks.support.meters import CostMeter
from benchmarks.support.sink import MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP = 2_000
"""Events sent before the measurement."""

BATCH = 500
VISITORS = [f"{MARK.decode()}{number:06d}" for number in range(1000)]
LIFTED = 100_000
"""Request limit per second that is so high that it does not slow the client down."""

Figures = dict[str, float]


def _figures(meter: CostMeter, events: int, *, at_caller: float | None = None) -> Figures:
    return {
        "cpu": meter.cpu / events * 1e6,
        "rate": events / meter.wall,
        "peak": meter.peak / 2**20,
        # This is the time inside the caller's own calls, including other work that ran during them.
        "caller": (meter.wall if at_caller is None else at_caller) / events * 1e6,
    }


# --- the least possible code, and code by hand ------------------------------------------------------------------------


def _envelopes(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        visitor = VISITORS[number % len(VISITORS)]
        yield {"view": {"sessionExternalId": visitor, "productId": number, "timestamp": "2026-01-01T12:00:00+00:00"}}


async def floor(port: int, events: int, cap: int = BATCH) -> Figures:
    """Encode lists of `cap` ready dicts and post each list: the least work that any client must do."""
    import httpx
    import orjson

    ready = list(_envelopes(events))
    url = f"http://127.0.0.1:{port}/1.0/visitorEvents?partnerId=p&apiKey=k"
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient() as client:

        async def send(envelopes: list[dict[str, Any]]) -> None:
            for start in range(0, len(envelopes), cap):
                response = await client.post(url, content=orjson.dumps(envelopes[start : start + cap]), headers=headers)
                assert response.status_code == 200

        await send(ready[:WARM_UP])
        with CostMeter() as meter:
            await send(ready)
    return _figures(meter, events)


async def bare_events(port: int, events: int, pause: float = 0.0) -> Figures:
    """Process events one by one with the least work: unchecked attrs objects, encoded, posted in lists of 500.

    There is no limit, no retry, no bound and no outcome. If `pause` is above 0, it is the wait in seconds after each
    batch, and the posts run concurrently in tasks.
    """
    import datetime as dt

    import attrs
    import httpx
    import orjson

    @attrs.frozen(kw_only=True)
    class Bare:
        session_external_id: str
        timestamp: dt.datetime
        stock_id: str | None = None
        product_id: int

    url = f"http://127.0.0.1:{port}/1.0/visitorEvents?partnerId=p&apiKey=k"
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient() as client:
        kept: list[bytes] = []
        posts: list[asyncio.Task[None]] = []

        async def post(body: bytes) -> None:
            response = await client.post(url, content=body, headers=headers)
            assert response.status_code == 200

        async def track(event: Bare) -> None:
            fields = {
                "sessionExternalId": event.session_external_id,
                "timestamp": event.timestamp,
                "productId": event.product_id,
            }
            # The bytes are copied, as in our client: the bytes that orjson returns keep 4 KB of memory alive.
            kept.append(b'{"view":' + orjson.dumps(fields, None, orjson.OPT_OMIT_MICROSECONDS) + b"}")
            if len(kept) == BATCH:
                body = b"[%b]" % b",".join(kept)
                kept.clear()
                if pause:
                    posts.append(asyncio.create_task(post(body)))
                    await asyncio.sleep(pause)
                else:
                    await post(body)

        async def send(count: int) -> None:
            for number in range(count):
                now = dt.datetime.now(dt.UTC)
                await track(Bare(session_external_id=VISITORS[number % 1000], timestamp=now, product_id=number))
            await asyncio.gather(*posts)

        await send(WARM_UP)
        with CostMeter() as meter:
            await send(events)
    return _figures(meter, events)


async def httpx_by_hand(port: int, events: int) -> Figures:
    """Post each event with httpx in a request of its own, as developers often write it by hand."""
    import httpx

    url = f"http://127.0.0.1:{port}/1.0/view"
    async with httpx.AsyncClient() as client:

        async def send(count: int) -> None:
            for envelope in _envelopes(count):
                response = await client.post(url, params={"partnerId": "p", "apiKey": "k"}, json=envelope["view"])
                response.raise_for_status()

        await send(100)
        with CostMeter() as meter:
            await send(events)
    return _figures(meter, events)


async def aiohttp_by_hand(port: int, events: int) -> Figures:
    """Post each event with aiohttp in a request of its own, as developers often write it by hand."""
    import aiohttp

    url = f"http://127.0.0.1:{port}/1.0/view"
    async with aiohttp.ClientSession() as session:

        async def send(count: int) -> None:
            for envelope in _envelopes(count):
                async with session.post(url, params={"partnerId": "p", "apiKey": "k"}, json=envelope["view"]) as answer:
                    answer.raise_for_status()
                    await answer.read()

        await send(100)
        with CostMeter() as meter:
            await send(events)
    return _figures(meter, events)


# --- our client -------------------------------------------------------------------------------------------------------


def client_of(port: int, **options: Any) -> Any:
    """Return our client, with a request limit that is too high to slow it down."""
    from retailrocket_async import AsyncTrackingClient, RateLimit

    options.setdefault("rate_limit", RateLimit(requests=LIFTED))
    return AsyncTrackingClient("k", "p", base_url=f"http://127.0.0.1:{port}/1.0/", **options)


def _checked(client: Any) -> None:
    stats = client.stats()
    assert stats.delivered == stats.tracked, stats


async def ours_by_track(port: int, events: int, cap: int = BATCH, **options: Any) -> Figures:
    """Call `await client.track(View(...))` for each event, then `flush`; the client sends batches of `cap` events."""
    from retailrocket_async import Batching, View

    async with client_of(port, batching=Batching(max_events=cap), **options) as client:

        async def send(count: int) -> None:
            track = client.track
            for number in range(count):
                await track(View(session_external_id=VISITORS[number % 1000], product_id=number))
            await client.flush()

        await send(WARM_UP)
        with CostMeter() as meter:
            await send(events)
        _checked(client)
    return _figures(meter, events)


async def ours_by_track_many(port: int, events: int) -> Figures:
    """Call `await client.track_many(...)` with a generator of a thousand events at a time, then `flush`."""
    from retailrocket_async import View

    async with client_of(port) as client:

        async def send(count: int) -> None:
            for start in range(0, count, 1000):
                await client.track_many(
                    View(session_external_id=VISITORS[number % 1000], product_id=number)
                    for number in range(start, min(start + 1000, count))
                )
            await client.flush()

        await send(WARM_UP)
        with CostMeter() as meter:
            await send(events)
        _checked(client)
    return _figures(meter, events)


async def ours_with_receipts(port: int, events: int) -> Figures:
    """Call `await client.view(...)` for each event; after each thousand, await all their receipts."""
    async with client_of(port) as client:

        async def send(count: int) -> None:
            view = client.view
            for start in range(0, count, 1000):
                receipts = [
                    await view(session_external_id=VISITORS[number % 1000], product_id=number)
                    for number in range(start, min(start + 1000, count))
                ]
                for receipt in receipts:
                    assert (await receipt).status == 200

        await send(WARM_UP)
        with CostMeter() as meter:
            await send(events)
        _checked(client)
    return _figures(meter, events)


# --- libraries of other services --------------------------------------------------------------------------------------


def _peer(track: Callable[[str, int], object], flush: Callable[[], object], events: int) -> Figures:
    """Measure a library that sends from its own threads; flush its queue before the queue is full and drops events."""
    for number in range(WARM_UP):
        track(VISITORS[number % 1000], number)
    flush()
    at_caller = 0.0
    with CostMeter() as meter:
        for start in range(0, events, _PEER_QUEUE // 2):
            begin = time.perf_counter()
            for number in range(start, min(start + _PEER_QUEUE // 2, events)):
                track(VISITORS[number % 1000], number)
            at_caller += time.perf_counter() - begin
            flush()
    return _figures(meter, events, at_caller=at_caller)


_PEER_QUEUE = 20_000


def segment(port: int, events: int) -> Figures:
    """Send with Segment's analytics-python, in batches of 500."""
    from segment.analytics import Client

    client = Client("k", host=f"http://127.0.0.1:{port}", max_queue_size=_PEER_QUEUE, upload_size=BATCH)
    return _peer(lambda visitor, product: client.track(visitor, "view", {"productId": product}), client.flush, events)


def rudderstack(port: int, events: int) -> Figures:
    """Send with RudderStack's Python SDK, in batches of 500."""
    from rudderstack.analytics.client import Client

    client = Client("k", host=f"http://127.0.0.1:{port}", max_queue_size=_PEER_QUEUE, upload_size=BATCH, gzip=False)
    return _peer(lambda visitor, product: client.track(visitor, "view", {"productId": product}), client.flush, events)


def posthog(port: int, events: int) -> Figures:
    """Send with PostHog's Python SDK, in batches of 500."""
    from posthog import Posthog

    client = Posthog(
        "k", host=f"http://127.0.0.1:{port}", flush_at=BATCH, max_queue_size=_PEER_QUEUE, disable_geoip=False
    )
    return _peer(
        lambda visitor, product: client.capture("view", distinct_id=visitor, properties={"productId": product}),
        client.flush,
        events,
    )


async def posthog_async(port: int, events: int) -> Figures:
    """Send with PostHog's asyncio client, in batches of 500."""
    from posthog import AsyncPosthog

    client = AsyncPosthog("k", host=f"http://127.0.0.1:{port}", flush_at=BATCH, max_queue_size=_PEER_QUEUE)

    async def send(count: int) -> None:
        for start in range(0, count, _PEER_QUEUE // 2):
            for number in range(start, min(start + _PEER_QUEUE // 2, count)):
                answer = client.capture("view", distinct_id=VISITORS[number % 1000], properties={"productId": number})
                if asyncio.iscoroutine(answer):
                    await answer
            await client.flush()

    await send(WARM_UP)
    with CostMeter() as meter:
        await send(events)
    return _figures(meter, events)


def amplitude(port: int, events: int) -> Figures:
    """Send with Amplitude's Python SDK, in batches of 500."""
    from amplitude import Amplitude, BaseEvent

    client = Amplitude("k")
    client.configuration.server_url = f"http://127.0.0.1:{port}/2/httpapi"
    client.configuration.flush_queue_size = BATCH
    client.configuration.logger = logging.getLogger("amplitude")

    def flush() -> None:
        for each in client.flush() or ():
            if each is not None:
                each.result()

    return _peer(
        lambda visitor, product: client.track(
            BaseEvent("view", user_id=visitor, event_properties={"productId": product})
        ),
        flush,
        events,
    )


def snowplow(port: int, events: int) -> Figures:
    """Send with Snowplow's Python tracker and its emitter with threads, in batches of 500."""
    from snowplow_tracker import AsyncEmitter, StructuredEvent, Subject, Tracker

    sent = 0
    done = threading.Condition()

    def succeeded(payloads: list[Any]) -> None:
        nonlocal sent
        with done:
            sent += len(payloads)
            done.notify_all()

    emitter = AsyncEmitter(
        f"127.0.0.1:{port}",
        protocol="http",
        method="post",
        batch_size=BATCH,
        on_success=succeeded,
        buffer_capacity=_PEER_QUEUE,
    )
    tracker = Tracker("shop", emitter)
    subjects = {visitor: Subject().set_user_id(visitor) for visitor in VISITORS}
    tracked = itertools.count(1)
    last = 0

    def track(visitor: str, product: int) -> None:
        nonlocal last
        tracker.track(StructuredEvent("shop", "view", property_=str(product), event_subject=subjects[visitor]))
        last = next(tracked)

    def flush() -> None:
        tracker.flush(is_async=True)
        with done:
            assert done.wait_for(lambda: sent >= last, timeout=60)

    return _peer(track, flush, events)


def mixpanel(port: int, events: int) -> Figures:
    """Send with Mixpanel's Python SDK and its buffered consumer, in batches of 50, the most that it allows."""
    from mixpanel import BufferedConsumer, Mixpanel

    consumer = BufferedConsumer(max_size=50, events_url=f"http://127.0.0.1:{port}/track", api_host="127.0.0.1")
    client = Mixpanel("k", consumer)
    return _peer(lambda visitor, product: client.track(visitor, "view", {"productId": product}), consumer.flush, events)
