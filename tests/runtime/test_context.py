"""The client stores no visitor's context variables, and functions that run for all visitors do not see them."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import weakref
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    HandleTimeoutError,
    LocalLimiter,
    Observer,
    RateLimit,
    RetryPolicy,
    SqliteSpool,
)
from retailrocket_async.asgi import RetailRocket
from retailrocket_async.redis import RedisLimiter
from retailrocket_async.relay import MemorySource, MemoryStream, Relay
from tests.support.fakes import CODEC, event, turns
from tests.support.internals import connections_closed
from tests.support.raw_server import RawServer, answer, raw_server
from tests.support.redis_server import RedisServer, free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
    from pathlib import Path

    from retailrocket_async import ObservedRequest, Outcome

__all__ = ["redis_server"]

FAR = 3600.0
"""Seconds for timeouts that never pass during a test."""


class Visitor:
    """A value that a request stores in a context variable."""


visitor: ContextVar[Visitor | None] = ContextVar("visitor", default=None)


async def visit(work: Callable[[], Coroutine[Any, Any, object]]) -> weakref.ref[Visitor]:
    """Run `work` as the request of one visitor. Return a weak reference to the visitor."""
    ours = Visitor()
    context = Context()
    context.run(visitor.set, ours)
    task = asyncio.get_running_loop().create_task(work(), context=context)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return weakref.ref(ours)


async def is_forgotten(reference: weakref.ref[Visitor]) -> bool:
    """Return True if the visitor is garbage-collected after a few turns of the loop."""
    await turns(20)
    gc.collect()
    return reference() is None


async def until(condition: Callable[[], bool]) -> None:
    """Poll until the condition is true, for at most 60 s."""
    # The timer of `asyncio.timeout` would store the current context, so it is not used.
    ends_at = asyncio.get_running_loop().time() + 60.0
    while not condition():
        assert asyncio.get_running_loop().time() < ends_at
        await asyncio.sleep(0.001)


def parked(server: RawServer) -> asyncio.Event:
    """Make the server wait, before it answers, until the returned event is set."""
    go_on = asyncio.Event()

    async def respond(_: object, __: object) -> bytes:
        await go_on.wait()
        return answer(200)

    server.respond = respond
    return go_on


@asynccontextmanager
async def client_of(server: RawServer, **options: Any) -> AsyncIterator[AsyncTrackingClient]:
    """Yield a client of the server. At the end, close the client without waiting for its events."""
    options.setdefault("api_key", "key")
    client = AsyncTrackingClient(partner_id="partner", base_url=server.url, **options)
    try:
        yield client
    finally:
        await client.aclose(0.0)
        # Connections that are still closing would be garbage-collected in a later test, so this waits for them.
        await connections_closed(client)


# --- calls of a visitor ---


async def _tracks(client: AsyncTrackingClient) -> None:
    await client.track(event(1))


async def _tracks_envelopes(client: AsyncTrackingClient) -> None:
    await client.track_envelopes([CODEC.encode(event(1))])


async def in_thread(function: Callable[[], object]) -> None:
    """Call a function in a new thread with a copy of this context, and wait until the thread ends."""
    thread = threading.Thread(target=copy_context().run, args=(function,))
    thread.start()
    await until(lambda: not thread.is_alive())


async def _tracks_by_a_handle(client: AsyncTrackingClient) -> None:
    await in_thread(functools.partial(client.threadsafe().track, event(1)))


async def _sends(client: AsyncTrackingClient) -> None:
    await client.send(event(1))


async def _gives_up(client: AsyncTrackingClient) -> None:
    sending = asyncio.create_task(client.send(event(1)))
    await until(lambda: client.stats().requests_by_status != {} or client.stats().in_flight == 1)
    await turns(10)
    sending.cancel()
    await asyncio.wait({sending})


async def _flushes(client: AsyncTrackingClient) -> None:
    await client.track(event(1))
    await client.flush(FAR)


@pytest.mark.parametrize("tracks", [_tracks, _tracks_envelopes, _tracks_by_a_handle])
@pytest.mark.parametrize(
    "options",
    [
        {"batching": Batching(linger=FAR)},
        {"batching": Batching(linger=FAR), "buffer": Buffer(max_age=FAR)},
        {"batching": Batching(linger=0.0)},
    ],
    ids=["waits in the buffer", "has an age", "is on its way"],
)
async def test_an_event_keeps_no_visitor(
    tracks: Callable[[AsyncTrackingClient], Coroutine[Any, Any, None]], options: dict[str, Any]
) -> None:
    """If an event waits or is in flight, no task, timer or event refers to its caller's context."""
    async with raw_server() as server, client_of(server, **options) as client:
        go_on = parked(server)
        reference = await visit(lambda: tracks(client))
        if options["batching"].linger == 0.0:
            await until(lambda: bool(server.arrived))

        assert await is_forgotten(reference)
        go_on.set()


@pytest.mark.parametrize("does", [_sends, _flushes])
async def test_a_call_that_has_returned_keeps_no_visitor(
    does: Callable[[AsyncTrackingClient], Coroutine[Any, Any, None]],
) -> None:
    """If `send` or `flush` has returned, no timer or connection refers to the caller's context."""
    async with raw_server() as server, client_of(server) as client:
        reference = await visit(lambda: does(client))

        assert await is_forgotten(reference)
        await client.send(event(2))
        assert 1 == server.connections


@pytest.mark.parametrize("replies", [None, answer(503), answer(429, "Retry-After: 50")], ids=["parked", "503", "429"])
async def test_a_send_that_was_cancelled_keeps_no_visitor(replies: bytes | None) -> None:
    """If a `send` is cancelled in flight or before its retry, no object refers to its caller's context."""
    retry = RetryPolicy(initial_backoff=FAR, max_backoff=FAR, max_elapsed=FAR)
    async with raw_server() as server, client_of(server, retry=retry) as client:
        if replies is None:
            parked(server)
        else:
            server.always(replies)
        reference = await visit(lambda: _gives_up(client))

        assert await is_forgotten(reference)


@pytest.mark.parametrize("limiter", [LocalLimiter(None), LocalLimiter(RateLimit(requests=1, per=FAR))], ids=["no", "1"])
async def test_a_send_that_waited_for_its_permit_keeps_no_visitor(limiter: LocalLimiter) -> None:
    """If a `send` is cancelled while it waits for a permit, no timer refers to its caller's context."""
    async with raw_server() as server, client_of(server, limiter=limiter) as client:
        await client.send(event(1))
        limiter.pause_until(asyncio.get_running_loop().time() + 60.0)
        reference = await visit(lambda: _gives_up(client))

        assert await is_forgotten(reference)


@pytest.mark.parametrize("does", [_tracks, _gives_up])
async def test_an_outage_keeps_no_visitor(does: Callable[[AsyncTrackingClient], Coroutine[Any, Any, None]]) -> None:
    """If the API is down, neither the circuit breaker's timers nor waiting requests refer to a caller's context."""
    retry = RetryPolicy(initial_backoff=60.0, max_backoff=60.0, max_elapsed=FAR)
    batching = Batching(linger=0.0, max_events=1)
    async with raw_server() as server, client_of(server, retry=retry, batching=batching) as client:
        server.always(answer(503))
        for number in range(2, 7):
            await client.track(event(number, f"visitor{number}"))
        await until(lambda: client.stats().state == "down")
        reference = await visit(lambda: does(client))

        assert await is_forgotten(reference)


async def test_a_full_buffer_keeps_no_visitor() -> None:
    """If a caller stops waiting for space in the buffer, in the loop or a thread, no object keeps its context."""
    options = {"batching": Batching(linger=FAR, max_events=10), "buffer": Buffer(max_events=1)}
    async with raw_server() as server, client_of(server, **options) as client:
        parked(server)
        await client.track(event(1))
        handle = client.threadsafe()

        def gives_up() -> None:
            with pytest.raises(HandleTimeoutError):
                handle.track(event(3), timeout=0.01)

        async def waits() -> None:
            waiting = asyncio.create_task(client.track(event(2)))
            await turns()
            waiting.cancel()
            await asyncio.wait({waiting})
            await in_thread(gives_up)

        reference = await visit(waits)

        assert 1 == client.stats().tracked
        assert await is_forgotten(reference)


# --- the user's functions ---


class Blocked:
    """Functions that record which visitor they see, and return only after `go_on` is set."""

    def __init__(self) -> None:
        self.seen: list[Visitor | None] = []
        self.go_on = threading.Event()

    def plainly(self, *_: object) -> str:
        """Block the thread until `go_on` is set."""
        self.seen.append(visitor.get())
        assert self.go_on.wait(60.0)
        return "key"

    async def later(self, *_: object) -> str:
        """Wait in the loop until `go_on` is set."""
        self.seen.append(visitor.get())
        await until(self.go_on.is_set)
        return "key"

    def in_both(self, *_: object) -> Coroutine[Any, Any, str]:
        """Record the visitor in a thread, and return a coroutine that waits in the loop."""
        self.seen.append(visitor.get())
        return self.later()


KINDS: dict[str, Callable[[Blocked], Callable[..., object]]] = {
    "plain": lambda blocked: blocked.plainly,
    "coroutine": lambda blocked: blocked.later,
    "both": lambda blocked: blocked.in_both,
}


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    """Provide functions that block until the test ends."""
    functions = Blocked()
    yield functions
    functions.go_on.set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("does", [_tracks, _gives_up])
async def test_a_key_function_sees_and_keeps_no_visitor(
    kind: str, does: Callable[[AsyncTrackingClient], Coroutine[Any, Any, None]], blocked: Blocked
) -> None:
    """If the key is returned by a function, the function runs in an empty context."""
    api_key: Any = KINDS[kind](blocked)
    async with raw_server() as server, client_of(server, api_key=api_key, batching=Batching(linger=0.0)) as client:
        reference = await visit(lambda: does(client))
        await until(lambda: bool(blocked.seen))

        assert await is_forgotten(reference)
        blocked.go_on.set()
        await client.flush()

    assert {None} == set(blocked.seen)


@pytest.mark.parametrize("kind", KINDS)
async def test_hooks_see_and_keep_no_visitor(kind: str, blocked: Blocked) -> None:
    """If `on_outcome` and `on_state_change` are called, they run in an empty context."""
    hook = KINDS[kind](blocked)
    options = {"batching": Batching(linger=0.0), "on_outcome": hook, "on_state_change": hook}
    async with raw_server() as server, client_of(server, **options) as client:
        server.in_turn(answer(400), answer(403))
        reference = await visit(lambda: _tracks(client))
        await until(lambda: bool(blocked.seen))

        assert await is_forgotten(reference)
        blocked.go_on.set()
        await visit(lambda: _tracks(client))
        await until(lambda: client.stats().state == "halted")
        await client.aclose(1.0)

    assert {None} == set(blocked.seen)
    assert 0 == client.stats().hook_errors


async def test_a_hook_called_at_a_visitors_line_sees_no_visitor(blocked: Blocked) -> None:
    """If one visitor's call drops another visitor's event, the hook and the observer see neither visitor's context."""
    blocked.go_on.set()
    options: dict[str, Any] = {"buffer": Buffer(max_events=1, overflow="drop_oldest"), "batching": Batching(linger=FAR)}
    seeing = Seeing()
    options |= {"on_outcome": blocked.plainly, "observer": seeing}
    async with raw_server() as server, client_of(server, **options) as client:
        await visit(lambda: _tracks(client))
        reference = await visit(lambda: _tracks(client))
        await until(lambda: bool(blocked.seen))

        assert await is_forgotten(reference)

    assert {None} == set(blocked.seen)
    assert {("tracked", True), ("settled", False)} == seeing.seen


async def test_a_thread_keeps_no_variables_from_one_call_to_the_next() -> None:
    """If a hook sets a context variable in its thread, the next call of the hook does not see the value."""
    seen: list[Visitor | None] = []

    def hook(_: object) -> None:
        seen.append(visitor.get())
        visitor.set(Visitor())

    async with raw_server() as server, client_of(server, on_outcome=hook, batching=Batching(linger=0.0)) as client:
        server.always(answer(400))
        for number in range(3):
            await (await client.track(event(number)))
            await until(functools.partial(_is_long, seen, number + 1))

    assert [None] * 3 == seen


def _is_long(things: list[Any], length: int) -> bool:
    return len(things) == length


# --- observers ---


class Seeing(Observer):
    """An observer that records which of its methods see a visitor, and sets a context variable for each request."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, bool]] = set()
        self.requests: list[str | None] = []

    def _note(self, method: str) -> None:
        self.seen.add((method, visitor.get() is not None))

    def tracked(self) -> object:
        """Record whether `tracked` sees a visitor."""
        self._note("tracked")
        return None

    def request_began(self, request: ObservedRequest) -> object:
        """Record whether this method sees a visitor, and set the variable to the request's path."""
        self._note("request_began")
        self.requests.append(current.get())
        return current.set(request.path)

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Record whether this method sees a visitor, and reset the variable."""
        self._note("request_ended")
        current.reset(begun)  # type: ignore[arg-type]

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Record whether `settled` sees a visitor."""
        self._note("settled")


current: ContextVar[str | None] = ContextVar("current", default=None)


@pytest.mark.parametrize(
    ("does", "sees"), [(_flushes, {"tracked"}), (_sends, {"request_began", "request_ended", "settled"})]
)
async def test_the_context_that_an_observer_sees(
    does: Callable[[AsyncTrackingClient], Coroutine[Any, Any, None]], sees: set[str]
) -> None:
    """If an event is tracked or sent directly, the observer sees the caller's context; for batches, an empty one."""
    seeing = Seeing()
    methods = {"request_began", "request_ended", "settled"} | sees
    async with raw_server() as server, client_of(server, observer=seeing) as client:
        reference = await visit(lambda: does(client))

        assert {(method, method in sees) for method in methods} == seeing.seen
        assert await is_forgotten(reference)
    assert 0 == client.stats().hook_errors


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_variable_set_by_an_observer_holds_for_its_request(keeps: bool) -> None:  # noqa: FBT001
    """If `request_began` sets a variable, only this request sees the value; other requests and retries do not."""
    inside: list[str | None] = []

    class Limiter(LocalLimiter):
        async def acquire(self) -> None:
            inside.append(current.get())

    class Forgetful(Seeing):
        def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
            if not keeps:
                super().request_ended(begun, status=status, failure=failure)

    seeing = Forgetful()
    async with raw_server() as server:

        async def hooked(_: object) -> None:
            inside.append(current.get())

        async with httpx.AsyncClient(event_hooks={"request": [hooked]}) as own:
            retry = RetryPolicy(initial_backoff=0.001, max_backoff=0.001)
            options: dict[str, Any] = {"http_client": own, "observer": seeing, "retry": retry}
            async with client_of(server, limiter=Limiter(None), **options) as client:
                server.in_turn(answer(503), answer(200), answer(503), answer(200))
                await client.send(event(1))
                await client.track(event(2))
                await client.flush()

    assert [None, "view", None, "view", None, "visitorEvents", None, "visitorEvents"] == inside
    assert [None] * 4 == seeing.requests
    assert 0 == client.stats().hook_errors


async def test_an_observer_with_an_origin_keeps_no_visitor() -> None:
    """If `Observer.origin` is set, the client refers to the variable's value only until its next request."""

    class Origin(Observer):
        origin = visitor

        def tracked(self) -> object:
            return None if visitor.get() is None else "somebody"

    async with raw_server() as server, client_of(server, observer=Origin()) as client:
        reference = await visit(lambda: _flushes(client))

        assert await is_forgotten(reference)


# --- the spool ---


@pytest.mark.parametrize("does", [_tracks, _flushes, _tracks_by_a_handle])
async def test_a_spool_keeps_no_visitor(
    does: Callable[[AsyncTrackingClient], Coroutine[Any, Any, None]], tmp_path: Path
) -> None:
    """If the client has a spool, the spool's thread and tasks do not refer to a caller's context."""
    async with raw_server() as server, client_of(server, spool=SqliteSpool(tmp_path / "spool")) as client:
        reference = await visit(lambda: does(client))
        await client.flush()

        assert await is_forgotten(reference)


async def test_a_close_with_a_spool_keeps_no_visitor(tmp_path: Path) -> None:
    """If the caller of a close is cancelled, the close continues, and nothing refers to the caller's context."""
    options = {"spool": SqliteSpool(tmp_path / "spool"), "batching": Batching(linger=0.0)}
    async with raw_server() as server, client_of(server, **options) as client:
        go_on = parked(server)
        await client.track(event(1))
        await until(lambda: bool(server.arrived))

        async def closes() -> None:
            closing = asyncio.create_task(client.aclose(FAR))
            await turns(10)
            closing.cancel()
            await asyncio.wait({closing})

        reference = await visit(closes)

        assert await is_forgotten(reference)
        go_on.set()


# --- the Redis limiter, relays and applications ---


@pytest.mark.needs_server("redis-server")
@pytest.mark.parametrize("reachable", [True, False])
async def test_a_redis_limiter_keeps_no_visitor(redis_server: RedisServer, reachable: bool) -> None:  # noqa: FBT001
    """If the Redis limiter is used, its reservations, timers and connection do not refer to a caller's context."""
    url = redis_server.url if reachable else f"redis://127.0.0.1:{free_port()}"
    async with Redis.from_url(url) as redis:
        limiter = RedisLimiter(redis, RateLimit(requests=5, per=1.0), replicas=1)

        async def asks() -> None:
            permit = await limiter.acquire()
            assert permit is not None
            permit.sent()
            limiter.throttled(asyncio.get_running_loop().time())
            limiter.pause_until(asyncio.get_running_loop().time() + 30.0)
            # `done` is never called, so the permit's timer remains.
            waiting = asyncio.create_task(limiter.acquire())
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait({waiting})

        reference = await visit(asks)

        assert await is_forgotten(reference)


async def test_a_relay_that_has_ended_keeps_no_context() -> None:
    """If a relay has ended, the client does not refer to the context in which the relay ran."""
    stream = MemoryStream()
    async with raw_server() as server, client_of(server, retry=RetryPolicy(outlast=True)) as client:
        relay = Relay(MemorySource(stream, name="relay"), client)

        async def runs() -> None:
            running = asyncio.create_task(relay.run())
            await stream.publish([CODEC.encode(event(1))])
            await until(lambda: client.stats().delivered == 1)
            relay.stop()
            await running

        reference = await visit(runs)

        assert await is_forgotten(reference)


async def test_an_application_keeps_no_visitor() -> None:
    """If a lifespan opens the client and a request uses it first, nothing refers to the request's context."""
    async with raw_server() as server:
        make = functools.partial(AsyncTrackingClient, "key", "partner", base_url=server.url)
        rocket = RetailRocket(make, batching=Batching(linger=FAR), grace=0.0)
        references: list[weakref.ref[Visitor]] = []
        scope: dict[str, Any] = {"type": "lifespan", "state": {}}
        starts = iter([True, False])

        async def app(scope: MutableMapping[str, Any], _: object, __: object) -> None:
            await _tracks(rocket.client(scope))

        whole = rocket.around(app)

        async def send(_: object) -> None:
            pass

        async def receive() -> dict[str, Any]:
            if not next(starts):
                request = {"type": "http", "state": scope["state"].copy()}
                references.append(await visit(lambda: _awaited(whole(request, receive, send))))
                assert await is_forgotten(references[0])
            return {}

        await whole(scope, receive, send)

    assert 1 == len(references)


async def _awaited(what: Awaitable[object]) -> None:
    await what
