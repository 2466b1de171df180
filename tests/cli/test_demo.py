"""Tests of the command `demo`: it sends the events of a made-up day and compares them with the recorded events."""

from __future__ import annotations

import re
from collections import Counter
from time import perf_counter
from typing import Any

import pytest

from retailrocket_async import EVENT_TYPES, Stats
from retailrocket_async.cli import _demo
from retailrocket_async.cli._shop_day import shop_day
from tests.support.command import on_a_terminal, posix, run_command


def test_demo() -> None:
    """If the demo runs, it reports that every event was recorded once, in order, within the limit, at 1.5 s a batch."""
    result = run_command("demo", "--events", "1200")

    assert result.exit_code == 0, result.stderr
    assert [
        "No two requests with events of one visitor overlapped, and no visitor's events were out of order.",
        "All 1,200 events were recorded, each exactly once, and no request was over the limit.",
    ] == result.stdout.splitlines()[-2:]
    assert re.search(r"all +1,200 +1,200\n", result.stdout)
    assert re.search(r"overlaps of a visitor's requests +0\n", result.stdout)
    assert re.search(r"seconds until a batch was answered +1\.5\n", result.stdout)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo's emulator answer batches at once."""
    monkeypatch.setattr(_demo, "_BATCH_LATENCY", 0.0)


@pytest.mark.usefixtures("quick")
def test_smallest_day() -> None:
    """If the day has a single event, the demo works."""
    assert run_command("demo", "--events", "1").exit_code == 0


def sent(**names: int) -> Any:
    """Return the report of a client that sent these numbers of events, by name, in two requests."""
    counts = Counter(names)
    return _demo.Sent(counts, Stats(delivered=counts.total(), requests=2), 1.0)


def recorded(**changes: object) -> dict[str, object]:
    """Return the counters of an emulator that recorded three events in two requests, with these changes."""
    said = {"events": {"view": 2, "search": 1}, "requests": 2, "refused": 0, "over_limit": 0, "worst_window": 50}
    return {**said, "overlaps": 0, "backward_steps": 0, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, []),
        ({"events": {"view": 1, "search": 1}}, ["2 view were sent and 1 recorded"]),
        ({"events": {"view": 2, "search": 1, "order": 1}}, ["0 order were sent and 1 recorded"]),
        ({"requests": 3}, ["the client made 2 requests and the emulator saw 3"]),
        ({"refused": 1}, ["1 requests were refused"]),
        ({"worst_window": 51}, ["the limit was broken: 51 requests arrived within one second"]),
        ({"over_limit": 1}, ["the limit was broken: 50 requests arrived within one second"]),
        ({"overlaps": 2}, ["2 times two requests with events of one visitor were under way at once"]),
        ({"backward_steps": 3}, ["3 times an event was older than one in an earlier request of its visitor"]),
    ],
)
def test_differences_are_reported(changes: dict[str, object], message: list[str]) -> None:
    """If sent and recorded events differ, every difference is reported."""
    assert message == list(_demo.differences(sent(view=2, search=1), recorded(**changes)))


def test_undelivered_events_are_reported() -> None:
    """If the client delivered fewer events than it sent, `differences` reports both numbers."""
    missing = _demo.Sent(Counter(view=2, search=1), Stats(delivered=2, requests=2), 1.0)

    assert ["3 events were sent and 2 are said to be delivered"] == list(_demo.differences(missing, recorded()))


@pytest.mark.usefixtures("quick")
def test_difference_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """If recorded events differ from those that were sent, the demo prints the difference and exits with 1."""
    monkeypatch.setattr(_demo, "differences", lambda *_: iter(["1 view went missing"]))
    result = run_command("demo", "--events", "20")

    assert (1, "error: 1 view went missing\n") == (result.exit_code, result.stderr)
    assert not re.search("exactly once|No two requests", result.stdout)


def test_day_has_all_events() -> None:
    """If a day has the default size, it contains every event that batches hold and that failures may repeat."""
    expected = {name for name, cls in EVENT_TYPES.items() if cls.batchable and not cls.at_most_once}

    assert expected == {event.event_name for event in shop_day(10_000, 1)}


def test_day_is_in_order() -> None:
    """The events of a made-up day are in order of time, on one date, and last until the evening."""
    times: list[Any] = [getattr(event, "timestamp", None) for event in shop_day(3_000, 1)]

    assert sorted(times) == times
    assert times[0].date() == times[-1].date()
    assert times[-1].hour >= 20


def test_day_follows_from_its_seed() -> None:
    """Days with the same seed have the same events; days with different seeds have different events."""
    assert list(shop_day(100, 1)) == list(shop_day(100, 1))
    assert list(shop_day(100, 1)) != list(shop_day(100, 2))


@posix
def test_interruption_on_a_terminal() -> None:
    """If Ctrl-C is pressed, the demo prints "interrupted", ends soon, and makes no further request to the emulator."""
    begun = perf_counter()
    status, seen = on_a_terminal(["demo", "--events", "1000000"], {b"events, ": b"\x03"}, {})
    took = perf_counter() - begun

    assert (130, True) == (status, took < 60), seen
    assert b"interrupted" in seen
    assert not re.search(rb"Traceback|attempt|WARNING|undelivered", seen), seen
