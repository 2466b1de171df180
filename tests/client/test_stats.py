"""The client's records: counters, undelivered events and the report of a close."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given

from retailrocket_async import (
    CloseReport,
    Codec,
    CustomEvent,
    Dropped,
    DroppedError,
    Event,
    Rejected,
    Search,
    Stats,
    UndeliveredEvent,
)
from tests.support.strategies import CODECS, PROPERTY, custom_events, events, fields_of

DROPPED = Dropped(reason="closed")


def undelivered(event: Event, codec: Codec | None = None) -> UndeliveredEvent:
    """Return the record of an undelivered `event`, encoded by the codec (by default with timestamps in seconds)."""
    envelope = (codec or CODECS["seconds"]).encode(event)
    return UndeliveredEvent(event_name=event.event_name, envelope=envelope, outcome=DROPPED)


@given(events() | custom_events())
@PROPERTY
def test_event_is_read_back(event: Event) -> None:
    """If an event is read back from `UndeliveredEvent.event`, it equals the original, also for a custom event."""
    assert event == undelivered(event, CODECS["microseconds"]).event


def test_event_of_an_unknown_type_is_read_back() -> None:
    """If a custom event is undelivered, `UndeliveredEvent.event` returns it as a `CustomEvent`."""
    event = CustomEvent(name="newEvent", fields={"a": 1})

    assert event == undelivered(event).event


def test_repr_withholds_the_event() -> None:
    """If `repr` shows a close report, the text contains event names and counts, but no data of a visitor."""
    lost = undelivered(Search(**fields_of(Search, search_phrase="a secret wish")))
    report = CloseReport(stats=Stats(), undelivered=(lost, lost), elapsed=0.5)

    assert "UndeliveredEvent(event_name='search', outcome=Dropped(reason='closed'))" == repr(lost)
    assert "undelivered=<2 events>" in repr(report)
    assert "secret" not in repr(report)


def test_clean() -> None:
    """If the report's `undelivered` is empty, `clean` is True; if `undelivered` contains an event, `clean` is False."""
    lost = undelivered(CustomEvent(name="newEvent", fields={}))

    assert CloseReport(stats=Stats(), undelivered=(), elapsed=0.0).clean is True
    assert CloseReport(stats=Stats(rejected=9), undelivered=(), elapsed=0.0).clean is True
    assert CloseReport(stats=Stats(), undelivered=(lost,), elapsed=0.0).clean is False


def test_new_stats() -> None:
    """If a client is new, its counters are 0, and two snapshots do not share a dict."""
    first, second = Stats(), Stats()

    assert first == second
    assert {0, "sending", None} >= {value for value in attrs.asdict(first).values() if value != {}}
    assert first.requests_by_status is not second.requests_by_status


@pytest.mark.parametrize(
    "record",
    [
        Stats(),
        UndeliveredEvent(event_name="view", envelope=b"{}", outcome=Rejected(status=400)),
        CloseReport(stats=Stats(), undelivered=(), elapsed=0.0),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_are_frozen(record: object) -> None:
    """If an attribute of a record is set, `FrozenInstanceError` is raised; records have no `__dict__`."""
    for field in attrs.fields_dict(type(record)):  # type: ignore[arg-type]
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(record, field, None)

    assert not hasattr(record, "__dict__")


def test_error_says_the_same_as_the_outcome() -> None:
    """If an event is undelivered, the record's `error` is the error that belongs to the event's outcome."""
    lost = undelivered(CustomEvent(name="newEvent", fields={}))

    assert (DroppedError, DROPPED) == (type(lost.error), lost.error.outcome)
