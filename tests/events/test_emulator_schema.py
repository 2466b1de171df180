"""The emulator's schema, which was written from the contract alone, accepts the client's events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import EVENT_TYPES, SetContact
from retailrocket_async._events.codec import join
from tests.support.strategies import CODECS, PROPERTY, custom_events, events, fields_of

if TYPE_CHECKING:
    from retailrocket_async import Event
    from retailrocket_async._events.codec import TimestampPrecision


@pytest.mark.parametrize("precision", ["seconds", "milliseconds", "microseconds"])
@given(event=events())
@PROPERTY
def test_event_is_accepted(precision: TimestampPrecision, event: Event) -> None:
    """If an event can be constructed, the emulator's schema accepts it."""
    from retailrocket_async.emulator._schema import check_event

    body = json.loads(CODECS[precision].encode_bare(event))

    assert [] == check_event(event.event_name, body)


@given(st.lists(events().filter(lambda event: event.batchable) | custom_events(), min_size=1, max_size=5))
@PROPERTY
def test_batch_is_accepted(several: list[Event]) -> None:
    """If a batch contains valid events and custom events are allowed, the emulator's schema accepts it."""
    from retailrocket_async.emulator._schema import check_batch

    body = json.loads(join(map(CODECS["seconds"].encode, several)))

    assert [] == check_batch(body, allow_unknown=True)


def test_quoted_address_is_accepted() -> None:
    """If an email address has an "@" in its quoted part, which RFC 5321 allows, client and emulator accept it."""
    from retailrocket_async.emulator._schema import check_event

    event = SetContact(**fields_of(SetContact, email='"a@b"@example.org'))

    assert [] == check_event("setContact", json.loads(CODECS["seconds"].encode_bare(event)))


def test_same_events() -> None:
    """The client and the emulator know the same events."""
    from retailrocket_async.emulator._schema import EVENTS

    assert EVENT_TYPES.keys() == EVENTS.keys()
