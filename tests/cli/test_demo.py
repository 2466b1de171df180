"""``demo``: a made-up day arrives whole, and what would not is told."""

from __future__ import annotations

import re
from collections import Counter
from time import perf_counter
from typing import Any

import pytest

from retailrocket_async import EVENT_TYPES, Stats
from retailrocket_async.cli import _demo
from retailrocket_async.cli._shop_day import shop_day
from tests.cli.test_cli import invoke
from tests.cli.test_send import on_a_terminal, posix


def test_demo() -> None:
    """The demo says that all was recorded, once and within the limit."""
    result = invoke("demo", "--events", "1200")

    assert result.exit_code == 0, result.stderr
    told = "All 1,200 events were recorded, each exactly once, and no request was over the limit."
    assert told == result.stdout.splitlines()[-1]
    assert re.search(r"all +1,200 +1,200\n", result.stdout)


def test_smallest_day() -> None:
    """A day of one event is a day."""
    assert invoke("demo", "--events", "1").exit_code == 0


def sent(**names: int) -> Any:
    """Return what a client says that sent these events in two requests."""
    counts = Counter(names)
    return _demo._Sent(counts, Stats(delivered=counts.total(), requests=2), 1.0)


def recorded(**changes: object) -> dict[str, object]:
    """Return what an emulator says that recorded three events in two requests."""
    said = {"events": {"view": 2, "search": 1}, "requests": 2, "refused": 0, "over_limit": 0, "worst_window": 50}
    return {**said, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_differences_are_told(changes: dict[str, object], told: list[str]) -> None:
    """Whatever the emulator recorded otherwise than it was sent is told."""
    assert told == list(_demo._differences(sent(view=2, search=1), recorded(**changes)))


def test_undelivered_events_are_told() -> None:
    """What the client could not deliver is told."""
    missing = _demo._Sent(Counter(view=2, search=1), Stats(delivered=2, requests=2), 1.0)

    assert ["3 events were sent and 2 are said to be delivered"] == list(_demo._differences(missing, recorded()))


def test_difference_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a difference the demo ends with status 1 and says which."""
    monkeypatch.setattr(_demo, "_differences", lambda *_: iter(["1 view went missing"]))
    result = invoke("demo", "--events", "20")

    assert (1, "error: 1 view went missing\n") == (result.exit_code, result.stderr)
    assert "exactly once" not in result.stdout


def test_day_has_all_events() -> None:
    """A day of the default size holds every type of event."""
    assert EVENT_TYPES.keys() == {event.event_name for event in shop_day(10_000, 1)}


def test_day_is_in_order() -> None:
    """A day goes from its morning to its night."""
    times: list[Any] = [getattr(event, "timestamp", None) for event in shop_day(3_000, 1)]

    assert sorted(times) == times
    assert times[0].date() == times[-1].date()
    assert times[-1].hour >= 20


def test_day_comes_of_its_seed() -> None:
    """The same seed makes the same day, another one another."""
    assert list(shop_day(100, 1)) == list(shop_day(100, 1))
    assert list(shop_day(100, 1)) != list(shop_day(100, 2))


@posix
def test_interruption_on_a_terminal() -> None:
    """Ctrl-C ends the demo soon and in a word, with no time spent on an emulator that has gone."""
    begun = perf_counter()
    status, seen = on_a_terminal(["demo", "--events", "1000000"], {b"events, ": b"\x03"}, {})
    took = perf_counter() - begun

    assert (130, True) == (status, took < 60), seen
    assert b"interrupted" in seen
    assert not re.search(rb"Traceback|attempt|WARNING|undelivered", seen), seen
