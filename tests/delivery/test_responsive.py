"""Nothing blocks the event loop for long: large work is divided, and costs do not grow with the number of events.

Nothing here measures time. Parts are counted by turns of the loop, costs by calls of functions.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    ClientClosedError,
    Dropped,
    EventValidationError,
    Rejected,
    RetryPolicy,
    View,
)
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.environment import Environment, EnvironmentReader
from retailrocket_async._http.transport import HttpxTransport
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._receipt import single_receipt
from retailrocket_async.emulator import Settings, running_emulator
from tests.support.engine_state import (
    ages_kept,
    awaiting,
    codec_of,
    httpx_client_of,
    running_key_call,
    waiting_at_breaker,
)
from tests.support.fakes import NEVER, Engine, RecordingLimiter, ScriptedTransport, check_balance, event, turns
from tests.support.receipts import settle
from tests.support.virtual_time import CheckedLoop, block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async import Receipt as PublicReceipt
    from retailrocket_async import UndeliveredEvent
    from retailrocket_async._receipt import Receipt

MOST = 1500
"""Number of events that may be settled in one turn of the loop, which takes a few milliseconds."""

ONE_EACH = Batching(max_events=1)
LARGE = Batching(max_events=10_000, max_bytes=4 * 1024 * 1024)


class Pace:
    """Measures by how much a counter grows at most in one turn of the loop."""

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._last = counter()
        self.worst = 0
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CheckedLoop)
        loop.checks.append(self._look)

    def _look(self) -> None:
        count = self._counter()
        self.worst = max(self.worst, count - self._last)
        self._last = count


def settled(engine: Engine) -> Pace:
    """Return a `Pace` that counts the events that get their outcomes."""

    def counter() -> int:
        stats = engine.stats()
        return stats.delivered + stats.rejected + stats.abandoned + stats.dropped

    return Pace(counter)


def calls(function: Callable[[], object]) -> int:
    """Return how many functions, in Python and in C, a call of `function` calls."""
    count = 0

    def profile(_frame: object, what: str, _argument: object) -> None:
        nonlocal count
        count += what in ("call", "c_call")

    before, collecting = sys.getprofile(), gc.isenabled()
    # The garbage collector could run at any time and call its listeners, for example Hypothesis's.
    gc.disable()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    return count


async def fill(engine: Engine, count: int) -> list[PublicReceipt]:
    """Track `count` events, each of another visitor; return the receipts."""
    return [await engine.track(number) for number in range(count)]


async def begun(engine: Engine) -> None:
    """Wait until `aclose(timeout=1)` has begun to drop events."""
    await asyncio.sleep(0.7)
    while not engine.stats().dropped:
        # The virtual clock stands still while a task is ready, so the test moves it.
        block(0.0001)
        await asyncio.sleep(0)


async def nothing(_: Sequence[UndeliveredEvent]) -> None:
    """Ignore the events, as a hook that does nothing."""


SHAPES: list[Any] = [
    pytest.param(Batching(), 20_000, MOST, id="batches"),
    pytest.param(LARGE, 20_000, MOST, id="large"),
    pytest.param(ONE_EACH, 2_000, 150, id="one_each"),
]


@pytest.mark.untraced
@pytest.mark.parametrize(("batching", "count", "most"), SHAPES)
async def test_a_full_buffer_expires_in_parts(
    virtual_clock: CheckedLoop, batching: Batching, count: int, most: int
) -> None:
    """If many events become too old at the same moment, they are dropped in parts, and other tasks run in between."""
    engine = Engine(
        ScriptedTransport(),
        limiter=RecordingLimiter(gated=True),
        batching=batching,
        buffer=Buffer(max_age=10.0),
        on_outcome=nothing,
    )
    receipts = await fill(engine, count)
    pace = settled(engine)
    await asyncio.sleep(10.3)

    assert [receipt.outcome for receipt in receipts] == [Dropped(reason="expired")] * count
    assert pace.worst <= most


@pytest.mark.parametrize(("batching", "count", "most"), SHAPES)
async def test_a_halt_ends_in_parts(virtual_clock: CheckedLoop, batching: Batching, count: int, most: int) -> None:
    """If a client with a full buffer is halted for longer than `max_halt`, the events are rejected in parts."""
    engine = Engine(ScriptedTransport(then=403), batching=batching, retry=RetryPolicy(max_halt=3.0), on_outcome=nothing)
    receipts = await fill(engine, count)
    pace = settled(engine)
    await asyncio.sleep(6.0)

    assert all(isinstance(receipt.outcome, Rejected) for receipt in receipts)
    assert engine.stats().pending == engine.stats().in_flight == 0
    # A batch in flight is settled as a whole.
    assert pace.worst <= max(most, 2 * batching.max_events)


@pytest.mark.parametrize(("batching", "count"), [pytest.param(*shape.values[:2], id=shape.id) for shape in SHAPES])
async def test_a_full_buffer_is_closed_in_parts(virtual_clock: CheckedLoop, batching: Batching, count: int) -> None:
    """If a close drops events, it drops them in parts, merges small batches, and reports all events in order."""
    engine = Engine(ScriptedTransport(), limiter=RecordingLimiter(gated=True), batching=batching, on_outcome=nothing)
    await fill(engine, count)
    pace = settled(engine)
    report = await engine.aclose(1.0)
    assert [undelivered.event.product_id for undelivered in report.undelivered] == list(range(count))  # type: ignore[attr-defined]
    check_balance(report.stats)

    assert pace.worst <= MOST


@pytest.mark.parametrize("ends", ["halted", "down", "closed"])
async def test_direct_sends_end_in_parts(virtual_clock: CheckedLoop, ends: str) -> None:
    """If thousands of direct sends get the same outcome, they are not all settled in one turn."""
    limiter = RecordingLimiter(gated=True)
    retry = RetryPolicy(max_halt=3.0, max_elapsed=3.0, max_backoff=0.5)
    transport = ScriptedTransport(then=403 if ends == "halted" else 503)
    engine = Engine(transport, limiter=limiter, retry=retry)
    sends = [asyncio.create_task(engine.send(number)) for number in range(2000)]
    await turns()
    if ends == "closed":
        pace = settled(engine)
        await engine.aclose(1.0)
    else:
        limiter.open_gate()
        pace = settled(engine)
        await asyncio.sleep(20.0)
    outcomes = await asyncio.gather(*sends, return_exceptions=True)

    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    assert pace.worst <= 250


async def test_many_who_wait_are_let_in_in_parts(virtual_clock: CheckedLoop) -> None:
    """If thousands of callers can be accepted, they are accepted in order, a limited number in each turn."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(
        ScriptedTransport(), limiter=limiter, batching=Batching(max_events=2000), buffer=Buffer(max_events=2000)
    )
    await engine.track_all(range(2000))
    callers = [asyncio.create_task(engine.track(number)) for number in range(2000, 4000)]
    await turns()
    assert engine.stats().waiting == 2000
    pace = Pace(lambda: -engine.stats().waiting)
    limiter.grant()
    await turns(20)
    assert engine.stats().waiting == 0
    assert pace.worst <= 250
    await asyncio.gather(*callers)
    limiter.open_gate()
    await engine.flush()

    assert engine.transport.recorded_numbers == list(range(4000))


async def test_many_who_wait_are_turned_away_in_parts(virtual_clock: CheckedLoop) -> None:
    """If a client closes, thousands of waiting callers are refused in parts, and none of their events is accepted."""
    engine = Engine(ScriptedTransport(), limiter=RecordingLimiter(gated=True), buffer=Buffer(max_events=1))
    await engine.track(0)
    callers = [asyncio.create_task(engine.track(number)) for number in range(1, 2000)]
    await turns()
    pace = Pace(lambda: sum(caller.done() for caller in callers))
    report = await engine.aclose(0.0)

    assert (report.stats.tracked, report.stats.waiting) == (1, 0)
    assert all(isinstance(each, ClientClosedError) for each in await asyncio.gather(*callers, return_exceptions=True))
    assert pace.worst <= 250


async def test_a_flush_starts_nothing_in_the_middle_of_a_close(virtual_clock: CheckedLoop) -> None:
    """If a close drops a full buffer in parts, a flush meanwhile does not send any more of it."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter)
    await fill(engine, 20_000)
    closing = asyncio.create_task(engine.aclose(1.0))
    await begun(engine)
    await turns()
    assert 0 < engine.stats().pending < 20_000
    limiter.open_gate()
    await engine.flush()
    report = await closing

    assert (report.stats.dropped, report.stats.requests) == (20_000, 0)


async def test_a_cancelled_close_still_ends_everything(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled between two parts, the remaining events are settled in one step."""
    engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_in_flight=8), on_outcome=nothing)
    await fill(engine, 20_000)
    closing = asyncio.create_task(engine.aclose(1.0))
    await begun(engine)
    assert engine.stats().pending > 0
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    stats = engine.stats()

    assert (stats.pending, stats.in_flight, stats.abandoned + stats.dropped) == (0, 0, 20_000)


# --- costs ---


def filled_buffer(
    batching: Batching, visitors: int, per_visitor: int, clock: Callable[[], float], **bounds: Any
) -> tuple[EventBuffer, list[Receipt]]:
    """Return a buffer with `per_visitor` events of each of `visitors` visitors, and the receipts of these events."""
    buffer = EventBuffer(batching, Buffer(**bounds), clock)
    keys = [buffer.key_of(f"v{number}") for number in range(visitors)]
    return buffer, [buffer.append(b"{}", "view", key) for key in keys * per_visitor]


def test_expiry_does_not_look_at_young_events() -> None:
    """If all events are young, an expiry checks none of them, even if their runs were opened long ago."""
    now = 0.0
    buffer, _ = filled_buffer(Batching(), 1000, 1, lambda: now, max_age=10.0)
    now = 9.0
    for number in range(1000):
        buffer.append(b"{}", "view", buffer.key_of(f"v{number}"))
    assert sum(map(len, buffer.expire(5.0))) == 1000
    assert buffer.events == 1000

    assert calls(lambda: list(buffer.expire(5.0))) < 20


def test_the_ages_of_what_has_left_are_forgotten() -> None:
    """If batches were taken, their ages do not stay in memory."""
    now = 0.0
    buffer, _ = filled_buffer(ONE_EACH, 1, 1, lambda: now, max_age=1e6)
    for _ in range(1000):
        buffer.append(b"{}", "view", None)
        assert buffer.take() is not None
    assert ages_kept(buffer) < 100


def test_a_long_chain_costs_little() -> None:
    """If as many events of one visitor wait as are allowed, taking and releasing a batch takes a few calls a run."""
    buffer, _ = filled_buffer(Batching(), 1, 5000, lambda: 0.0)

    def turn() -> None:
        batch = buffer.take()
        assert batch is not None
        assert buffer.release(batch)

    assert calls(turn) <= 20 * 5000 / 50


@pytest.mark.untraced
@pytest.mark.parametrize("waiting", [10, 510, 90_010])
async def test_an_event_that_fills_no_batch_costs_few_calls(virtual_clock: CheckedLoop, waiting: int) -> None:
    """If an event is tracked, few functions are called up to its receipt, however many events wait."""
    client = AsyncTrackingClient("k", "p", limiter=RecordingLimiter(gated=True))
    await client.track_many(View(session_external_id=f"v{number}", product_id=1) for number in range(waiting))
    view = View(session_external_id="visitor", product_id=1)

    def track() -> None:
        with pytest.raises(StopIteration):
            client.track(view).send(None)

    def nothing() -> None:
        with pytest.raises(StopIteration):
            next(iter(()))

    assert calls(track) - calls(nothing) <= 35
    assert client.stats().tracked == waiting + 1
    await client.aclose(0)


def test_many_visitors_are_not_gone_through_for_every_event() -> None:
    """If many visitors have events, the time of the next batch is known without a check of each visitor."""
    now = 0.0
    buffer, _ = filled_buffer(Batching(max_events=10_000, linger=1.0), 1000, 1, lambda: now)
    assert buffer.due_in() == 1.0
    for number in range(1000, 1010):
        now += 0.01
        buffer.append(b"{}", "view", buffer.key_of(f"v{number}"))
        assert calls(buffer.due_in) < 10
    assert buffer.due_in() == pytest.approx(0.9)


async def test_stats_do_not_count_who_waits(virtual_clock: CheckedLoop) -> None:
    """If thousands of callers wait, `stats()` calls no more functions than with none."""
    engine = Engine(ScriptedTransport(), limiter=RecordingLimiter(gated=True), buffer=Buffer(max_events=1))
    await engine.track(0)
    alone = calls(engine.stats)
    callers = [asyncio.create_task(engine.track(number)) for number in range(2000)]
    await turns()
    assert engine.stats().waiting == 2000
    assert calls(engine.stats) <= alone
    await engine.aclose(0.0)
    await asyncio.gather(*callers, return_exceptions=True)


async def test_a_key_function_that_hangs_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a key function does not return, it is called once for any number of requests, and its late key is used."""
    monkeypatch.setattr("retailrocket_async._http.credentials.ASK_SECONDS", 0.01)
    called = 0
    go_on = threading.Event()

    def ask() -> str:
        nonlocal called
        called += 1
        go_on.wait()
        return f"key{called}"

    credentials = Credentials(ask, "partner")
    for _ in range(5):
        assert await credentials.ready() == "TimeoutError"
    assert called == 1
    go_on.set()
    monkeypatch.setattr("retailrocket_async._http.credentials.ASK_SECONDS", 60.0)
    assert await credentials.ready() is None
    assert (called, credentials.serial) == (1, 1)
    assert await credentials.renew(1) == (True, None)
    assert called == 2


async def test_a_key_function_that_fails_late_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a key function fails after its last caller has left, its error, which may contain the key, is not logged."""
    monkeypatch.setattr("retailrocket_async._http.credentials.ASK_SECONDS", 0.01)
    go_on = threading.Event()

    def ask() -> str:
        go_on.wait()
        raise SystemExit("secret")

    credentials = Credentials(ask, "partner")
    assert await credentials.ready() == "TimeoutError"
    calling = running_key_call(credentials)
    assert calling is not None
    go_on.set()
    await asyncio.wait({calling})
    await turns()
    del calling
    gc.collect()
    assert caplog.records == []


def test_clients_share_their_codec() -> None:
    """If a second client is built, it shares the first one's codec, unless its timestamps have another precision."""
    first, second = AsyncTrackingClient("key", "partner"), AsyncTrackingClient("key", "partner")
    third = AsyncTrackingClient("key", "partner", timestamp_precision="milliseconds")
    assert codec_of(first) is codec_of(second) is not codec_of(third)


async def test_clients_open_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """If many clients start together, they read the certificate store one after the other, and all of them start."""
    read, reading, most = EnvironmentReader.read, 0, 0

    def counted(reader: EnvironmentReader) -> Environment:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        environment = read(reader)
        reading -= 1
        return environment

    monkeypatch.setattr(EnvironmentReader, "read", counted)
    async with running_emulator(Settings()) as emulator:
        clients = [AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url) for _ in range(5)]
        await asyncio.gather(*(client.send(event(1)) for client in clients))
        assert most == 1
        await asyncio.gather(*(client.aclose() for client in clients))


def test_cookies_are_not_read() -> None:
    """If an answer has any number of cookies, they cost nothing, and none is kept."""
    environment = Environment(ssl.create_default_context(), None)
    client = httpx_client_of(HttpxTransport(Credentials("key", "partner")), environment)

    def cost(count: int) -> int:
        headers = [("Set-Cookie", f"name{number}=value; Path=/; Max-Age=99") for number in range(count)]
        response = httpx.Response(200, headers=headers, request=httpx.Request("POST", "https://host/"))
        return calls(lambda: client.cookies.extract_cookies(response))

    cost(1)
    assert cost(500) == cost(1)
    assert len(client.cookies) == 0


async def test_a_batch_that_is_too_long_is_not_encoded(virtual_clock: CheckedLoop) -> None:
    """If `send_batch` gets an endless feed, it is refused after the first event too many, and nothing is encoded."""
    client = AsyncTrackingClient("key", "partner", batching=Batching(max_events=3))
    made = []

    with pytest.raises(EventValidationError, match="1 to 3 events"):
        await client.send_batch(made.append(number) or "no event" for number in itertools.count())  # type: ignore[func-returns-value,misc]

    assert made == [0, 1, 2, 3]


async def test_sends_that_are_cancelled_in_an_outage_are_forgotten(virtual_clock: CheckedLoop) -> None:
    """If direct sends that wait for the API are cancelled, the last first, nothing of them stays in memory."""
    engine = Engine(ScriptedTransport(then=503))
    sends = [asyncio.create_task(engine.send(number)) for number in range(2000)]
    await asyncio.sleep(3.0)
    waiting = waiting_at_breaker(engine)
    assert engine.stats().state == "down"
    assert len(waiting) > 1900
    for send in reversed(sends):
        send.cancel()
    await asyncio.gather(*sends, return_exceptions=True)

    assert (len(waiting), engine.stats().in_flight) == (0, 0)


async def test_a_receipt_forgets_who_was_cancelled(virtual_clock: CheckedLoop) -> None:
    """If thousands of tasks await one receipt and some are cancelled, the others are woken in order."""
    receipt, woken = single_receipt("view"), []

    async def wait(number: int) -> None:
        await receipt
        woken.append(number)

    waits = [asyncio.create_task(wait(number)) for number in range(2000)]
    await turns()
    for task in reversed(waits[5:]):
        task.cancel()
    await asyncio.gather(*waits[5:], return_exceptions=True)
    assert awaiting(receipt) == 5
    settle([receipt], Dropped(reason="closed"))
    await asyncio.gather(*waits[:5])

    assert woken == [0, 1, 2, 3, 4]
