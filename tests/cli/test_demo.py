"""`demo` sends the events of a made-up day and reports every difference from what was recorded."""

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
    """If the demo runs, it reports that every event was recorded once, within the limit."""
    result = run_command("demo", "--events", "1200")

    assert result.exit_code == 0, result.stderr
    message = "All 1,200 events were recorded, each exactly once, and no request was over the limit."
    assert message == result.stdout.splitlines()[-1]
    assert re.search(r"all +1,200 +1,200\n", result.stdout)


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
    return {**said, **changes}


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
    ],
)
def test_differences_are_reported(changes: dict[str, object], message: list[str]) -> None:
    """If sent and recorded events differ, every difference is reported."""
    assert message == list(_demo.differences(sent(view=2, search=1), recorded(**changes)))


def test_undelivered_events_are_reported() -> None:
    """If the client could not deliver events, they are reported."""
    missing = _demo.Sent(Counter(view=2, search=1), Stats(delivered=2, requests=2), 1.0)

    assert ["3 events were sent and 2 are said to be delivered"] == list(_demo.differences(missing, recorded()))


def test_difference_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """If recorded events differ from those that were sent, the demo prints the difference and exits with 1."""
    monkeypatch.setattr(_demo, "differences", lambda *_: iter(["1 view went missing"]))
    result = run_command("demo", "--events", "20")

    assert (1, "error: 1 view went missing\n") == (result.exit_code, result.stderr)
    assert "exactly once" not in result.stdout


def test_day_has_all_events() -> None:
    """If a day has the default size, it contains every event that batches hold and that failures may repeat."""
    expected = {name for name, cls in EVENT_TYPES.items() if cls.batchable and not cls.at_most_once}

    assert expected == {event.event_name for event in shop_day(10_000, 1)}


def test_day_is_in_order() -> None:
    """If a day is made, its events are in order of time, on one date, and last until the evening."""
    times: list[Any] = [getattr(event, "timestamp", None) for event in shop_day(3_000, 1)]

    assert sorted(times) == times
    assert times[0].date() == times[-1].date()
    assert times[-1].hour >= 20


def test_day_follows_from_its_seed() -> None:
    """If the seed is the same, the events are the same; another seed makes other events."""
    assert list(shop_day(100, 1)) == list(shop_day(100, 1))
    assert list(shop_day(100, 1)) != list(shop_day(100, 2))


@posix
def test_interruption_on_a_terminal() -> None:
    """If Ctrl-C is pressed, the demo ends soon with one word, and does not retry to reach the ended emulator."""
    begun = perf_counter()
    status, seen = on_a_terminal(["demo", "--events", "1000000"], {b"events, ": b"\x03"}, {})
    took = perf_counter() - begun

    assert (130, True) == (status, took < 60), seen
    assert b"interrupted" in seen
    assert not re.search(rb"Traceback|attempt|WARNING|undelivered", seen), seen
