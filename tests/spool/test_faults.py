"""In each run one call of a spool to SQLite or to the operating system fails, either once or at every later call, too.

First a run without a fault is recorded. Of each kind of call in this run the first, the second and the last call are
chosen, and each of them fails in a run of its own. Whichever call fails, the spool's thread continues, no accepted
event is lost or sent twice, every outcome agrees with what the server has recorded, and the close ends.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import orjson
import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Delivered,
    Kept,
    RetryPolicy,
    SpoolError,
    SqliteSpool,
)
from retailrocket_async._spool.file import SpoolFile
from tests.support.fakes import check_balance, event
from tests.support.faulty_system import Faults, FaultySystem, connector
from tests.support.spools import spool_thread_ended, until

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async import Outcome, Receipt

# This module takes half a minute, so it runs only once and without measuring coverage.
pytestmark = pytest.mark.endurance


AT_ONCE = 24
"""Number of runs at the same time; each run spends most of its time waiting."""


class FaultySpool(SqliteSpool):
    """A spool whose calls to SQLite and to the system fail as `FAULTS` says for its path."""

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return the spool's file; `FAULTS` decides which calls of the file fail."""
        faults = FAULTS[self.path]
        return SpoolFile(
            self.path,
            durability=self.durability,
            max_bytes=self.max_bytes,
            shop=shop,
            patience=1.0,
            system=FaultySystem(faults),
            connect=connector(faults),
        )


FAULTS: dict[Any, Faults] = {}


@attrs.define
class Run:
    """The result of a run: the receipt or error of each event, and the events found in the server and in the file."""

    tracked: dict[int, Receipt | SpoolError]
    recorded: list[int]
    waiting: list[int]
    dead: list[int]
    problems: list[str]


async def run(path: Path, faults: Faults, *, lasting: bool) -> Run:
    """Track some events in a spool with these faults, and close the client. Return the result of the run."""
    recorded: list[int] = []
    problems: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        recorded.extend(each["view"]["productId"] for each in orjson.loads(request.content))
        return httpx.Response(200)

    spool = FaultySpool(path, full_timeout=0.3, durability="interval")
    FAULTS[spool.path] = faults
    tracked: dict[int, Any] = {}
    async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http:
        client = AsyncTrackingClient(
            "key",
            "shop",
            spool=spool,
            http_client=http,
            rate_limit=None,
            retry=RetryPolicy(initial_backoff=0.01, max_backoff=0.02),
            batching=Batching(linger=0.01, max_events=2),
        )

        async def track(numbers: range) -> None:
            results = await asyncio.gather(*(client.track(event(number)) for number in numbers), return_exceptions=True)
            tracked.update(zip(numbers, results, strict=True))

        await track(range(1, 4))
        with suppress(SpoolError, TimeoutError):
            await client.flush(0.5 if lasting else 20.0)
        await track(range(4, 6))
        if not lasting:
            try:
                await client.flush(20.0)
            except SpoolError:
                # The one failing call of this run was made by this flush, so the next flush succeeds.
                await client.flush(20.0)
            # `failure` becomes None when the next maintenance of the spool finds that the file works again.
            await until(lambda: client.stats().spool.failure is None)  # type: ignore[union-attr]
            if not all(number in recorded for number, result in tracked.items() if not isinstance(result, Exception)):
                problems.append("the flush has left something")
            # Whatever failed, the next event is accepted and delivered.
            await track(range(6, 7))
            if isinstance(tracked[6], BaseException) or not isinstance(await tracked[6], Delivered):
                problems.append(f"it does not go on: {tracked[6]}")
        report = await client.aclose(0.5)
        try:
            check_balance(report.stats)
        except AssertionError as error:
            problems.append(f"the counts do not add up: {error}")
    faults.clear()
    await spool_thread_ended(client)
    file = SpoolFile(path)
    file.open()
    waiting = [orjson.loads(body)["view"]["productId"] for body in file.events.read(0, 100, 1 << 20).bodies]
    dead = [orjson.loads(body)["view"]["productId"] for body in file.dead.read(0, 100).bodies]
    file.close()
    return Run(tracked, recorded, waiting, dead, problems)


def contradictions(run: Run) -> list[str]:
    """Return the contradictions in the result of a run, as sentences."""
    found = list(run.problems)
    for number, result in run.tracked.items():
        sent, waits = run.recorded.count(number), run.waiting.count(number)
        if sent > 1 or waits > 1:
            found.append(f"{number} was sent {sent} times and waits {waits} times")
        if isinstance(result, SpoolError):
            if (sent or waits) and "all the same" not in str(result):
                found.append(f"{number} was refused ({result}), was sent {sent} times and waits {waits} times")
        elif isinstance(result, BaseException):
            found.append(f"{number} raised {result!r}")
        elif not is_true(result.outcome, sent=sent > 0, waits=waits > 0, dead=number in run.dead):
            found.append(f"{number} is {result.outcome}, was sent {sent} times and waits {waits} times")
    return found


def is_true(outcome: Outcome | None, *, sent: bool, waits: bool, dead: bool) -> bool:
    """Return True if an accepted event is not lost, and its outcome agrees with the server and with the file."""
    if outcome is None or not (sent or waits or dead):
        return False
    if isinstance(outcome, Delivered):
        return sent
    # Here the outcome is either `Kept` or `Abandoned`.
    return (outcome.maybe_recorded or not sent) and (waits or outcome.maybe_recorded or not isinstance(outcome, Kept))


def chosen(calls: list[str]) -> list[int]:
    """Return the positions in `calls` of the calls that will fail: the first two and the last call of each kind."""
    by_kind: dict[str, list[int]] = {}
    for number, call in enumerate(calls):
        by_kind.setdefault(call, []).append(number)
    return sorted({number for numbers in by_kind.values() for number in [*numbers[:2], numbers[-1]]})


@pytest.mark.parametrize(
    "fault",
    [
        {"lasting": False},
        {"lasting": True},
        {"foreign": True},
        {"foreign": True, "lasting": True},
        {"after": True},
        {"after": True, "lasting": True},
    ],
    ids="-".join,
)
async def test_every_call_fails(tmp_path: Path, fault: dict[str, bool]) -> None:
    """If a call fails, once or permanently, no event is lost, sent twice or misreported; the client still works."""
    lasting = fault.get("lasting", False)
    recorded = Faults()
    assert contradictions(await run(tmp_path / "recorded", recorded, lasting=False)) == []
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> list[str]:
        async with limit:
            faults = Faults(number, **fault)
            try:
                async with asyncio.timeout(60):
                    found = contradictions(await run(tmp_path / f"{number}", faults, lasting=lasting))
            except Exception as error:  # noqa: BLE001 - reported by the assertion
                found = [repr(error)]
            failed = faults.calls[number] if number < len(faults.calls) else "nothing"
            return [f"call {number} ({failed}): {each}" for each in found]

    found = await asyncio.gather(*map(one, chosen(recorded.calls)))

    assert list(itertools.chain(*found)) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "retailrocket-spool"]
