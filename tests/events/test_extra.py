"""Fields that the API does not document: the constructors check them, and the codec sends and reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given

from retailrocket_async import EVENT_TYPES, Codec, EmailClick, EventValidationError, Order, SetContact, View
from retailrocket_async._outcome import Dropped
from retailrocket_async._stats import UndeliveredEvent
from tests.support.ids import shown
from tests.support.strategies import CLASSES, CODECS, PROPERTY, events_with_extra, fields_of

if TYPE_CHECKING:
    from retailrocket_async._events.models import VisitorEvent

CODEC = Codec()
EXACT = CODECS["microseconds"]
LINK = {"link": {"name": "crm", "value": "42"}}


@pytest.mark.parametrize("cls", CLASSES)
def test_extra_is_sent_beside_the_documented_fields(cls: type[VisitorEvent]) -> None:
    """If an event has extra fields, its JSON has the documented fields and the extra ones in one object."""
    plain, event = cls(**fields_of(cls)), cls(**fields_of(cls, extra=LINK))

    assert json.loads(CODEC.encode_bare(plain)) | LINK == json.loads(CODEC.encode_bare(event))


@PROPERTY
@given(event=events_with_extra())
def test_round_trip(event: VisitorEvent) -> None:
    """If an event with extra fields is encoded, decoding with `allow_extra` and encoding again gives equal results."""
    sent = EXACT.encode(event)
    decoded = EXACT.decode(sent, allow_extra=True)

    assert event == decoded == EXACT.from_wire(EXACT.to_wire(event), allow_extra=True)
    assert sent == EXACT.encode(decoded)
    assert (event.event_name, event.session_external_id, sent) == EXACT.examined(sent, allow_extra=True)


@PROPERTY
@given(event=events_with_extra())
def test_extra_is_refused_by_default(event: VisitorEvent) -> None:
    """If an envelope has fields that are not documented, decoding refuses it unless `allow_extra` is set."""
    sent = EXACT.encode(event)
    for read in (EXACT.decode, EXACT.examined, CODEC.examined):
        with pytest.raises(EventValidationError, match="has unknown fields"):
            read(sent, allow_custom=True)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_documented_field_is_refused(cls: type[VisitorEvent]) -> None:
    """If an extra field has the name of a documented field, in any spelling, the error says this and has the name."""
    for name in attrs.fields_dict(cls):
        if name == "extra":
            continue
        first, *rest = name.split("_")
        wire = first + "".join(map(str.capitalize, rest))
        for spelling in {name, wire, wire.upper(), wire.lower()}:
            with pytest.raises(EventValidationError) as caught:
                cls(**fields_of(cls, extra={"a": 1, spelling: 1}))
            spelt = "" if spelling == wire else f" (as {spelling!r})"

            assert str(caught.value) == (
                f"{cls.wire_name}.extra must not hold the documented field {wire!r}{spelt}: "
                f"use the field {name} of the event"
            )


def test_a_field_of_another_event_is_accepted() -> None:
    """If a field is documented only for other events, an event may have this field as an extra field."""
    event = EVENT_TYPES["recomBlockViewed"](**fields_of(EVENT_TYPES["recomBlockViewed"], extra={"stockId": "Moscow"}))

    assert event == CODEC.decode(CODEC.encode(event), allow_extra=True)


def test_a_field_named_extra() -> None:
    """If an extra field is called "extra", the field is sent and read under this name."""
    event = View(**fields_of(View, extra={"extra": {"extra": 1}}))

    assert CODEC.to_wire(event)["view"]["extra"] == {"extra": 1}
    assert event == CODEC.decode(CODEC.encode(event), allow_extra=True)


def test_no_extra_fields() -> None:
    """If `extra` is an empty mapping, the event equals an event without extra fields."""
    assert View(**fields_of(View)) == View(**fields_of(View, extra={}))
    assert View(**fields_of(View, extra={})).extra is None


def test_extra_is_copied() -> None:
    """If the caller changes a mapping after the construction, the event does not change."""
    given_extra: dict[str, Any] = {"a": [1]}
    event = View(**fields_of(View, extra=given_extra))
    given_extra["a"].append(2)

    assert event.extra == {"a": [1]}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"when": object()}, "view.extra.when must hold JSON values only, not object"),
        ({"when": {"Ivan Petrov": object()}}, "view.extra.when.* must hold JSON values only, not object"),
        ({"Ivan Petrov": object()}, "view.extra.* must hold JSON values only, not object"),
        ({1: 1}, "view.extra must have strings as keys, without lone surrogates; not int"),
        ([("a", 1)], "view.extra must be a mapping with string keys, not list"),
    ],
    ids=shown,
)
def test_message(extra: Any, expected: str) -> None:
    """If extra fields are no valid JSON, the error has the field's name, but no name that may be personal data."""
    with pytest.raises(EventValidationError) as caught:
        View(**fields_of(View, extra=extra))

    assert expected == str(caught.value)


@pytest.mark.parametrize(
    ("cls", "fields", "named"),
    [
        (View, {"link": {"id": 0}}, "extra"),
        (SetContact, {"customData": {"id": 0}, "link": 1}, "custom_data"),
        (SetContact, {"customData": {"id": 1}, "link": [0]}, "extra"),
        (EmailClick, {"customData": [0]}, "custom_data"),
    ],
)
def test_a_long_integer(cls: type[VisitorEvent], fields: dict[str, Any], named: str) -> None:
    """If a field that may have any JSON has an integer of more than 64 bits, the error has the name of the field."""
    body = CODEC.to_wire(cls(**fields_of(cls)))[cls.wire_name] | fields
    if cls is EmailClick:
        body["customData"] = {"ids": body["customData"]}
    text = json.dumps({cls.wire_name: body}).replace("0]", f"{2**64}]").replace('"id": 0', f'"id": {2**64}')
    with pytest.raises(EventValidationError, match=rf"\.{named} must hold integers of at most 64 bits"):
        CODEC.decode(text, allow_extra=True)


def test_a_long_price_beside_extra_fields() -> None:
    """If a price has more than 64 bits, but no extra field has, the order is decoded with its extra fields."""
    body = CODEC.to_wire(Order(**fields_of(Order)))["order"] | {"price": 10**20, "id": 2**63 - 1}
    event = CODEC.decode(json.dumps({"order": body}), allow_extra=True)

    assert isinstance(event, Order)
    assert (event.price, event.extra) == (1e20, {"id": 2**63 - 1})


def test_an_undelivered_event_has_its_extra_fields() -> None:
    """If an event with extra fields is not delivered, `UndeliveredEvent.event` has these fields."""
    event = View(**fields_of(View, extra=LINK))
    undelivered = UndeliveredEvent(event_name="view", envelope=CODEC.encode(event), outcome=Dropped(reason="closed"))

    assert event == undelivered.event
