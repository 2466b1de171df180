"""A client with a spool: an accepted event is on disk, and stays there until it has its outcome."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Batching,
    Buffer,
    BufferFullError,
    ClientClosedError,
    ConfigurationError,
    CustomEvent,
    Delivered,
    Dropped,
    EventValidationError,
    FlushTimeoutError,
    Kept,
    KeptError,
    Rejected,
    RetryPolicy,
    SpoolError,
    SpoolFullError,
    SqliteSpool,
    View,
)
from retailrocket_async._spool.file import Settlement, SpoolFile
from retailrocket_async._spool.outcome_codec import encode_outcome
from retailrocket_async.emulator import Settings as EmulatorSettings
from retailrocket_async.emulator import running_emulator
from tests.support.fakes import check_balance, event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from retailrocket_async import UndeliveredEvent
    from retailrocket_async.emulator import RunningEmulator

KEY, SHOP = "dev-api-key", "dev-partner"
QUICK = RetryPolicy(initial_backoff=0.02, max_backoff=0.05)
NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture
async def emulator() -> AsyncGenerator[RunningEmulator]:
    """An emulator of the API in this loop."""
    async with running_emulator(EmulatorSettings(limit=None)) as running:
        yield running


def client_of(
    path: Path, url: str = NOWHERE, *, key: str = KEY, spool: dict[str, Any] | None = None, **options: Any
) -> AsyncTrackingClient:
    """Return a client with a spool in `path`."""
    options = {"retry": QUICK, "rate_limit": None, "batching": Batching(linger=0.01), **options}
    return AsyncTrackingClient(key, SHOP, base_url=url, spool=SqliteSpool(path / "spool", **(spool or {})), **options)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - others' files tell nobody
            await asyncio.sleep(0.01)


def waiting(path: Path) -> list[int]:
    """Return the numbers of the events that wait, as anybody else sees them."""
    import orjson

    return [orjson.loads(each.envelope)["view"]["productId"] for each in SqliteSpool(path / "spool").events()]


def numbers(emulator: RunningEmulator) -> list[int]:
    """Return the numbers of the events that were recorded, in order."""
    return [record.fields["productId"] for record in emulator.events()]


async def leave_behind(path: Path, numbers: range, **options: Any) -> None:
    """Leave events in a spool, as a process does that closes while the API is down."""
    client = client_of(path, **options)
    await client.track_many(event(number) for number in numbers)
    await client.aclose(0)


# --- on disk --------------------------------------------------------------------------------------------------------


async def test_an_accepted_event_is_on_disk(tmp_path: Path) -> None:
    """When `track` returns, every other process can see the event in the file."""
    async with client_of(tmp_path) as client:
        for number in range(1, 6):
            await client.track(event(number))
            assert number in waiting(tmp_path)


async def test_events_are_delivered(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Events are delivered, their receipts say so, and nothing is left in the file."""
    async with client_of(tmp_path, emulator.url) as client:
        receipts = await client.track_many(event(number) for number in range(1, 1201))
        receipts.append(await client.view(session_external_id="visitor", product_id=1201))
        await client.flush()
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)
        check_balance(client.stats())
        assert client.stats().delivered == 1201
    assert sorted(numbers(emulator)) == list(range(1, 1202))
    assert waiting(tmp_path) == []


async def test_what_was_left_behind_is_delivered(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What another process left in the spool is delivered by the next client, which tracks nothing itself."""
    await leave_behind(tmp_path, range(1, 2001))
    async with client_of(tmp_path, emulator.url) as client:
        await until(lambda: len(emulator.events()) == 2000)
        assert client.stats().tracked == 0
    assert sorted(numbers(emulator)) == list(range(1, 2001))
    assert waiting(tmp_path) == []


async def test_a_close_keeps_what_it_cannot_deliver(emulator: RunningEmulator, tmp_path: Path) -> None:
    """While the API is down a close takes no time, loses nothing, and every receipt says that its event is kept."""
    emulator.fail_with("status", status=503, times=10_000)
    client = client_of(tmp_path, emulator.url)
    receipts = await client.track_many(event(number) for number in range(1, 1001))
    await until(lambda: client.stats().state == "down")
    report = await client.aclose(20.0)
    assert all(isinstance(receipt.outcome, Kept) for receipt in receipts)
    with pytest.raises(KeptError):
        await receipts[0].delivered()
    assert report.stats.kept == 1000
    assert report.undelivered == ()
    check_balance(report.stats)
    assert sorted(waiting(tmp_path)) == list(range(1, 1001))
    with pytest.raises(ClientClosedError):
        await client.track(event(1))


async def test_an_outage_costs_nothing(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Events outlast an outage that is longer than any retry, in the file, and are delivered after it."""
    emulator.fail_with("status", status=503, times=60)
    retry = RetryPolicy(initial_backoff=0.01, max_backoff=0.02, max_attempts=2, max_elapsed=0.1)
    async with client_of(tmp_path, emulator.url, retry=retry) as client:
        receipts = await client.track_many(event(number) for number in range(1, 1001))
        await client.flush(30)
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)


async def test_a_wrong_key_costs_nothing(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Events that are refused for a wrong key stay in the file, and a client with the right one delivers them."""
    client = client_of(tmp_path, emulator.url, key="wrong", retry=RetryPolicy(max_halt=0.0))
    receipts = await client.track_many(event(number) for number in range(1, 11))
    await until(lambda: client.stats().state == "halted")
    report = await client.aclose()
    assert [type(receipt.outcome) for receipt in receipts] == [Kept] * 10
    assert report.error is not None
    async with client_of(tmp_path, emulator.url):
        await until(lambda: len(emulator.events()) == 10)


async def test_refused_events_become_dead_letters(emulator: RunningEmulator, tmp_path: Path) -> None:
    """An event that the API refuses is moved to the dead letters, told of, and delivered once it is replayed."""
    told: list[UndeliveredEvent] = []
    emulator.fail_with("status", status=400, times=1)
    async with client_of(tmp_path, emulator.url, on_outcome=told.extend) as client:
        receipt = await client.track(event(1))
        assert isinstance(await receipt, Rejected)
        assert client.stats().rejected == 1
        check_balance(client.stats())
        spool = SqliteSpool(tmp_path / "spool")
        [dead] = spool.dead()
        assert (dead.reason, dead.maybe_recorded) == ("rejected: HTTP 400", False)
        await until(lambda: told)
        assert [each.envelope for each in told] == [dead.envelope]
        assert spool.replay_dead() == 1
        await until(lambda: numbers(emulator) == [1])


async def test_too_old_events_become_dead_letters(emulator: RunningEmulator, tmp_path: Path) -> None:
    """An event that waited longer than it may is not sent any more."""
    await leave_behind(tmp_path, range(1, 11))
    await asyncio.sleep(0.1)
    async with client_of(tmp_path, emulator.url, spool={"max_age": 0.1}):
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 10)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"expired"}
    assert emulator.events() == []


# --- several processes ----------------------------------------------------------------------------------------------


async def test_one_of_two_sends(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Of two clients one sends for both, and both learn what became of their own events."""
    async with client_of(tmp_path, emulator.url) as one:
        await until(lambda: one.stats().spool is not None and one.stats().spool.sends)
        async with client_of(tmp_path, emulator.url) as two:
            ours = await one.track_many(event(number) for number in range(1, 301))
            theirs = await two.track_many(event(number) for number in range(301, 601))
            assert {Delivered} == {type(await receipt) for receipt in ours + theirs}
            assert two.stats().spool is not None
            assert not two.stats().spool.sends
            assert (one.stats().delivered, two.stats().delivered) == (300, 300)
            assert two.stats().requests == 0
            check_balance(one.stats())
            check_balance(two.stats())


async def test_the_next_one_takes_over(emulator: RunningEmulator, tmp_path: Path) -> None:
    """When the client that sends ends, another one sends in its place."""
    one = client_of(tmp_path, emulator.url)
    await one.track(event(1))
    await until(lambda: one.stats().delivered)
    async with client_of(tmp_path, emulator.url) as two:
        await one.aclose()
        receipt = await two.track(event(2))
        assert isinstance(await receipt, Delivered)
        assert two.stats().spool is not None
        assert two.stats().spool.sends


def crash_while_sending(path: Path, url: str) -> None:
    """Track events, wait until some are on their way to an API that does not answer, and die."""

    async def main() -> None:
        client = client_of(path, url)
        await client.track_many([*(event(number) for number in range(1, 6)), event(6)])
        await until(lambda: client.stats().requests)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())


async def crashed(path: Path, emulator: RunningEmulator) -> None:
    """Have another process die with events on their way."""
    emulator.fail_with("stall", times=1, seconds=60)
    process = multiprocessing.get_context("spawn").Process(target=crash_while_sending, args=(path, emulator.url))
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    emulator.reset()


async def test_a_crash_leaves_a_mark(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What a process that was killed may have sent is sent again, and whoever is told of it hears so."""
    await crashed(tmp_path, emulator)
    emulator.fail_with("status", status=400, times=1)
    async with client_of(tmp_path, emulator.url, batching=Batching(max_events=1)):
        await until(lambda: len(emulator.events()) == 5)
        await until(lambda: list(SqliteSpool(tmp_path / "spool").dead()))
    [dead] = SqliteSpool(tmp_path / "spool").dead()
    assert dead.maybe_recorded


async def test_at_most_once_holds_over_a_crash(emulator: RunningEmulator, tmp_path: Path) -> None:
    """An event that must not be sent twice, and may have been sent by a process that was killed, is not sent again."""
    await crashed(tmp_path, emulator)
    retry = RetryPolicy(at_most_once=(View,))
    async with client_of(tmp_path, emulator.url, retry=retry) as client:
        await until(lambda: len(list(SqliteSpool(tmp_path / "spool").dead())) == 6)
        assert isinstance(await (await client.track(event(7))), Delivered)
    assert {dead.reason for dead in SqliteSpool(tmp_path / "spool").dead()} == {"at_most_once"}
    assert numbers(emulator) == [7]


async def test_a_clean_close_leaves_no_mark(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What a client kept without having sent it is not taken for sent by the next one."""
    await leave_behind(tmp_path, range(1, 6))
    retry = RetryPolicy(at_most_once=(View,))
    async with client_of(tmp_path, emulator.url, retry=retry):
        await until(lambda: len(emulator.events()) == 5)


async def test_another_process_that_holds_the_lock_is_waited_for(emulator: RunningEmulator, tmp_path: Path) -> None:
    """While another process writes, `track` waits; other tasks run meanwhile."""
    async with client_of(tmp_path, emulator.url) as client:
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            tracking = asyncio.create_task(client.track(event(1)))
            done, _ = await asyncio.wait({tracking}, timeout=0.3)
            assert not done
        assert isinstance(await (await tracking), Delivered)
        other.close()


async def test_outcomes_that_nobody_tells_any_more(tmp_path: Path) -> None:
    """Where the log has forgotten what became of own events, they are `Abandoned`; what waits goes on."""
    other = SpoolFile(tmp_path / "spool", shop=SHOP)
    other.open()
    assert other.lease.acquire()
    async with client_of(tmp_path) as client:
        receipts = await client.track_many(event(number) for number in range(1, 11))
        flushing = asyncio.create_task(client.flush())
        await asyncio.sleep(0)
        with other.transaction():
            other.settle(Settlement([(1, 3)], encode_outcome(Delivered(status=200))), 1.0)
            other.settle(Settlement([(4, 4)], encode_outcome(Delivered(status=201))), 1e10)
            other.settle(Settlement([(5, 5)], encode_outcome(Delivered(status=202))), 1.1e10)
        await until(receipts[4].done)
        await until(receipts[0].done)
        assert [receipt.outcome for receipt in receipts[:3]] == [
            Abandoned(reason="untold", maybe_recorded=True, attempts=0)
        ] * 3
        assert receipts[4].outcome == Delivered(status=202)
        assert not any(receipt.done() for receipt in receipts[5:])
        check_balance(client.stats())
        with other.transaction():
            other.settle(Settlement([(6, 10)], encode_outcome(Delivered(status=200))), 1.1e10)
        await flushing
        other.close()


# --- bounds ---------------------------------------------------------------------------------------------------------


async def fill(client: AsyncTrackingClient) -> None:
    """Track events until the spool takes no more."""
    while True:
        await client.track_many(event(number) for number in range(1, 501))


async def test_a_full_spool_blocks_and_then_raises(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A full spool makes `track` wait for its time, then raise; once there is room again, events are accepted."""
    emulator.fail_with("status", status=503, times=10)
    bounds = {"max_bytes": 1 << 20, "full_timeout": 0.2}
    async with client_of(tmp_path, emulator.url, spool=bounds, retry=RetryPolicy(initial_backoff=1.0)) as client:
        with pytest.raises(SpoolFullError):
            await fill(client)
        with pytest.raises(BufferFullError):
            client.track_nowait(event(1))
        check_balance(client.stats())
        emulator.reset()
        await client.flush(30)
        assert isinstance(await (await client.track(event(1))), Delivered)


async def test_room_that_is_made_in_time_is_used(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Who waits for room gets it as soon as it is there."""
    emulator.fail_with("status", status=503, times=8)
    bounds = {"max_bytes": 1 << 20, "full_timeout": 30.0}
    async with client_of(tmp_path, emulator.url, spool=bounds) as client:
        receipts = await client.track_many(event(number) for number in range(1, 15_001))
        await client.flush(30)
        assert client.stats().delivered == len(receipts)


@pytest.mark.parametrize("overflow", ["raise", "drop_newest", "drop_oldest"])
async def test_a_full_spool_does_as_it_is_told(overflow: Any, tmp_path: Path) -> None:
    """A full spool raises at once, drops the new event, or the oldest that is not on its way, and counts it."""
    async with client_of(tmp_path, spool={"max_bytes": 1 << 20}, buffer=Buffer(overflow=overflow)) as client:
        filling = asyncio.create_task(fill(client))
        if overflow == "raise":
            with pytest.raises(SpoolFullError):
                await filling
            return
        await until(lambda: client.stats().dropped)
        filling.cancel()
        await asyncio.wait({filling})
        receipt = await client.track(event(7777))
        if overflow == "drop_newest":
            # The first ones may find the little room that is left.
            async with asyncio.timeout(30):
                while not receipt.done():
                    receipt = await client.track(event(7777))
            assert receipt.outcome == Dropped(reason="overflow")
        else:
            assert 7777 in waiting(tmp_path)
            assert not receipt.done()
        stats = client.stats()
        assert stats.dropped_by == {"overflow": {"view": stats.dropped}}
        check_balance(stats)


async def test_the_disk_is_never_filled(tmp_path: Path) -> None:
    """Where less of the disk is free than is to stay free, nothing is accepted."""
    bounds = {"min_free": 1 << 60, "full_timeout": 0.05}
    async with client_of(tmp_path, spool=bounds) as client:
        with pytest.raises(SpoolFullError, match="disk"):
            await client.track(event(1))


# --- the caller's line ----------------------------------------------------------------------------------------------


async def test_a_bad_event_is_refused_at_once(tmp_path: Path) -> None:
    """What is no event, or too large for a batch, is refused before anything is written; what came before it stays."""
    async with client_of(tmp_path, batching=Batching(max_bytes=1024)) as client:
        large = CustomEvent(name="large", fields={"text": "x" * 2000})
        with pytest.raises(EventValidationError):
            await client.track(large)
        with pytest.raises(EventValidationError):
            await client.track_many([event(1), event(2), large, event(3)])
        assert waiting(tmp_path) == [1, 2]
        assert client.stats().tracked == 2


async def test_track_nowait(emulator: RunningEmulator, tmp_path: Path) -> None:
    """`track_nowait` returns at once, and its event is on disk a moment later."""
    async with client_of(tmp_path, emulator.url) as client:
        receipt = client.track_nowait(event(1))
        assert isinstance(await receipt, Delivered)


async def test_cancelled_callers(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Whoever is cancelled while waiting for the disk has either tracked the event or not, and blocks nobody."""
    async with client_of(tmp_path, emulator.url) as client:
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            tasks = [asyncio.create_task(client.track(event(number))) for number in range(1, 101)]
            many = asyncio.create_task(client.track_many(event(number) for number in range(101, 201)))
            await asyncio.sleep(0.05)
            for task in (*tasks[::2], many):
                task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, many, return_exceptions=True)
        await client.flush(30)
        accepted = [number for number, result in enumerate(results, 1) if not isinstance(result, BaseException)]
        assert set(range(2, 101, 2)) <= set(accepted)
        assert set(accepted) <= set(numbers(emulator))
        check_balance(client.stats())
        assert client.stats().waiting == 0
        other.close()


async def test_direct_sends_pass_the_spool(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A direct send goes at once, is not in the file, and is counted."""
    async with client_of(tmp_path, emulator.url) as client:
        assert isinstance(await client.send(event(1)), Delivered)
        assert isinstance(await client.send_batch([event(2), event(3)]), Delivered)
        stats = client.stats()
        assert (stats.tracked, stats.delivered) == (3, 3)
        check_balance(stats)


async def test_before_send(emulator: RunningEmulator, tmp_path: Path) -> None:
    """What `before_send` drops is never written, and is counted."""
    keep = lambda each: None if each.product_id % 2 else each  # noqa: E731
    async with client_of(tmp_path, emulator.url, before_send=keep) as client:
        receipts = await client.track_many(event(number) for number in range(1, 7))
        receipts.append(await client.track(event(7)))
        await client.flush(30)
        outcomes = [receipt.outcome for receipt in receipts]
        assert outcomes[::2] == [Dropped(reason="before_send")] * 4
        assert client.stats().dropped_by == {"before_send": {"view": 4}}
        check_balance(client.stats())
    assert numbers(emulator) == [2, 4, 6]


async def test_other_threads(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A handle for threads returns when the event is on disk."""
    async with client_of(tmp_path, emulator.url) as client:
        handle = client.threadsafe()
        receipts = await asyncio.to_thread(lambda: [handle.track(event(number)) for number in range(1, 21)])
        assert {Delivered} == {type(await receipt) for receipt in receipts}


async def test_flush_has_a_deadline(tmp_path: Path) -> None:
    """A flush that runs out of its time says so; the events stay."""
    async with client_of(tmp_path) as client:
        await client.track(event(1))
        with pytest.raises(FlushTimeoutError, match="stay in the spool"):
            await client.flush(0.05)


async def test_flush_cuts_the_linger_short(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A flush does not wait for the company that an event lingers for."""
    async with client_of(tmp_path, emulator.url, batching=Batching(linger=1000.0)) as client:
        receipt = await client.track(event(1))
        await client.flush(20)
        assert receipt.done()


async def test_a_visitors_events_stay_in_order(tmp_path: Path) -> None:
    """With ordered batching a visitor's events are recorded in the order of their calls, whatever fails meanwhile."""
    async with running_emulator(EmulatorSettings(limit=None, latency=0.002)) as emulator:
        emulator.fail_with("status", status=503, times=4)
        batching = Batching(max_events=7, linger=0.0, ordered=True)
        async with client_of(tmp_path, emulator.url, batching=batching) as client:
            for number in range(1, 301):
                await client.track(event(number, visitor=f"visitor{number % 5}"))
            await client.flush(30)
        seen: dict[str, list[int]] = {}
        for record in emulator.events():
            seen.setdefault(record.fields["sessionExternalId"], []).append(record.fields["productId"])
        assert all(each == sorted(each) for each in seen.values())
        assert sum(map(len, seen.values())) == 300


async def test_closing_twice(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Shutdown again, or while it closes, gives the same report; an unused client closes without making a file."""
    client = client_of(tmp_path, emulator.url)
    await client.track(event(1))
    first, second = await asyncio.gather(client.aclose(), client.aclose())
    assert first is second
    assert await client.aclose() is first
    unused = client_of(tmp_path / "other")
    await unused.aclose()
    assert not (tmp_path / "other").exists()


async def test_a_closed_client_lets_nobody_wait(tmp_path: Path) -> None:
    """Once the client is closed a flush returns at once, and so does one that is under way while it closes."""
    client = client_of(tmp_path)
    await client.track(event(1))
    flushing = asyncio.create_task(client.flush())
    await asyncio.sleep(0)
    await client.aclose(0)
    async with asyncio.timeout(10):
        await flushing
        await client.flush()
    with pytest.raises(ClientClosedError):
        await client.track(event(2))


async def test_a_defect_lets_nobody_wait(tmp_path: Path) -> None:
    """An error of a type that nobody expects is met as one of the disk: callers get it once they have waited."""

    class DefectSpool(SqliteSpool):
        def file(self, shop: str | None = None) -> SpoolFile:
            return DefectFile(self.path, shop=shop)

    class DefectFile(SpoolFile):
        def transaction(self) -> Any:
            raise ZeroDivisionError

    spool = DefectSpool(tmp_path / "spool", full_timeout=0.2)
    client = AsyncTrackingClient(KEY, SHOP, base_url=NOWHERE, spool=spool)
    async with asyncio.timeout(10):
        for number in (1, 2):
            with pytest.raises(SpoolError, match="ZeroDivisionError"):
                await client.track(event(number))
        await client.aclose(0)


async def test_a_cancelled_close_keeps_everything(emulator: RunningEmulator, tmp_path: Path) -> None:
    """A close that is cancelled gives every receipt its outcome, and leaves the file to the next client."""
    emulator.fail_with("stall", times=100, seconds=60)
    client = client_of(tmp_path, emulator.url)
    receipts = await client.track_many(event(number) for number in range(1, 1001))
    await until(lambda: client.stats().requests)
    closing = asyncio.create_task(client.aclose(60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    report = await client.aclose()
    assert report.stats.kept == 1000
    assert all(isinstance(receipt.outcome, Kept) for receipt in receipts)
    assert any(receipt.outcome == Kept(maybe_recorded=True, attempts=1) for receipt in receipts)


# --- trouble --------------------------------------------------------------------------------------------------------


async def test_a_spool_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A spool that cannot be opened raises where the client is entered, and at every event; it is logged once."""
    (tmp_path / "spool").mkdir(mode=0o755)
    (tmp_path / "spool").chmod(0o755)
    client = client_of(tmp_path)
    with pytest.raises(SpoolError, match="chmod 700"):
        await client.__aenter__()
    for _ in range(2):
        with pytest.raises(SpoolError, match="chmod 700"):
            await client.track(event(1))
    assert len(caplog.records) == 1
    (tmp_path / "spool").chmod(0o700)
    await asyncio.sleep(0.3)
    await client.track(event(1))
    await client.aclose(0)


class BreakingFile(SpoolFile):
    """A file whose disk fails while `broken` is set."""

    broken = threading.Event()

    def transaction(self) -> Any:
        """Fail, or begin a transaction."""
        if self.broken.is_set():
            raise SpoolError("the spool cannot be used: disk I/O error")
        return super().transaction()


class BreakingSpool(SqliteSpool):
    """A spool on such a file."""

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return the file."""
        return BreakingFile(self.path, shop=shop)


async def test_a_file_that_breaks(emulator: RunningEmulator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the disk fails `track` waits for its time and raises; it is logged once, and afterwards all goes on."""
    spool = BreakingSpool(tmp_path / "spool", full_timeout=0.3)
    client = AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, spool=spool, retry=QUICK)
    async with client:
        await (await client.track(event(1)))
        try:
            BreakingFile.broken.set()
            for number in (2, 3):
                with pytest.raises(SpoolError, match="disk I/O"):
                    await client.track(event(number))
            waiting = asyncio.create_task(client.track(event(4)))
            await asyncio.sleep(0)
        finally:
            BreakingFile.broken.clear()
        assert isinstance(await (await waiting), Delivered)
        assert client.stats().spool is not None
        assert client.stats().spool.sends
        check_balance(client.stats())
    assert [record.getMessage().startswith("the spool cannot be used") for record in caplog.records] == [True]
    assert numbers(emulator) == [1, 4]


async def test_the_key_is_in_no_file(emulator: RunningEmulator, tmp_path: Path) -> None:
    """Neither the key nor anything of the address is in the files."""
    client = client_of(tmp_path, emulator.url, key="a-secret-key-of-this-test")
    await client.track(event(1))
    await until(lambda: client.stats().requests)
    content = b"".join(path.read_bytes() for path in (tmp_path / "spool").iterdir())
    await client.aclose(0)
    assert b"a-secret-key" not in content
    assert b"apiKey" not in content


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A child that was forked from the process that sends does not keep others from sending."""
    file = SpoolFile(tmp_path / "spool")
    file.open()
    assert file.lease.acquire()
    read, write = os.pipe()
    ready, is_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(is_ready, b"x")
        os.read(read, 1)
        os._exit(0)
    os.read(ready, 1)
    file.close()
    other = SpoolFile(tmp_path / "spool")
    other.open()
    leads = other.lease.acquire()
    os.write(write, b"x")
    os.waitpid(child, 0)
    other.close()
    assert leads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path of a directory"),
        ({"path": 1}, "path of a directory"),
        ({"durability": "never"}, "durability"),
        ({"max_bytes": 1000}, "max_bytes"),
        ({"min_free": -1}, "min_free"),
        ({"max_age": 0}, "max_age"),
        ({"full_timeout": -1}, "full_timeout"),
        ({"dead_age": "1"}, "dead_age"),
        ({"max_dead": 1.5}, "max_dead"),
    ],
)
def test_bad_configuration(options: dict[str, Any], message: str) -> None:
    """A value that cannot work is refused at construction, by its name."""
    with pytest.raises(ConfigurationError, match=message):
        SqliteSpool(**{"path": "spool", **options})


def test_bad_combinations(tmp_path: Path) -> None:
    """What is no spool is refused, and so is shedding by value, which a file cannot do."""
    with pytest.raises(ConfigurationError, match="SqliteSpool"):
        AsyncTrackingClient(KEY, SHOP, spool="spool")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="shed"):
        client_of(tmp_path, buffer=Buffer(overflow="shed"))


async def test_interval(emulator: RunningEmulator, tmp_path: Path) -> None:
    """With `durability="interval"` everything works as ever."""
    async with client_of(tmp_path, emulator.url, spool={"durability": "interval"}) as client:
        receipts = await client.track_many(event(number) for number in range(1, 101))
        await client.flush(30)
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)


async def test_the_thread_ends(tmp_path: Path) -> None:
    """A closed client leaves no thread behind."""
    async with client_of(tmp_path) as client:
        await client.track(event(1))
        assert any(thread.name == "retailrocket-spool" for thread in threading.enumerate())
    assert not any(thread.name == "retailrocket-spool" and thread.is_alive() for thread in threading.enumerate())
