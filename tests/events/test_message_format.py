"""The JSON Schema of broker messages agrees with the codec and with the emulator."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import jsonschema
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retailrocket_async import EVENT_TYPES, EventValidationError
from retailrocket_async.emulator._schema import EVENTS, check_batch, check_event
from tests.support.strategies import CLASSES, CODECS, MINIMAL, PROPERTY, events, fields_of

if TYPE_CHECKING:
    from retailrocket_async import Event

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads(DOCS.joinpath("envelope.schema.json").read_text("utf-8"))
PAGE = DOCS.joinpath("message-format.md").read_text("utf-8")


@cache
def validator() -> jsonschema.Draft202012Validator:
    """Return a validator for the JSON Schema of broker messages."""
    return jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one() -> None:
    """The schema's file is valid by the rules of the JSON Schema draft that the file names."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_fields(name: str) -> None:
    """For each event, the schema has the fields of the event's class and the same required fields as the emulator."""
    described = SCHEMA["properties"][name]
    camel = {
        re.sub("_(.)", lambda found: found[1].upper(), field.name) for field in attrs.fields(EVENT_TYPES[name])
    } - {"extra"}

    assert set(described["properties"]) == camel == set(EVENTS[name].rules)
    assert set(described["required"]) == set(EVENTS[name].required)


def test_names() -> None:
    """The schema, the client and the emulator have the same event names."""
    assert SCHEMA["properties"].keys() == EVENT_TYPES.keys() == EVENTS.keys()


@PROPERTY
@given(event=events(), precision=st.sampled_from(["seconds", "milliseconds", "microseconds"]))
def test_encoded_events_are_valid(event: Event, precision: Any) -> None:
    """If an event is encoded, the schema accepts it."""
    envelope = json.loads(CODECS[precision].encode(event))

    assert [error.message for error in validator().iter_errors(envelope)] == []


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=60)
    | st.from_regex(r"[A-Za-z0-9]{1,60}", fullmatch=True)
    | st.from_regex(r"\+?[0-9]{1,20}", fullmatch=True)
    | st.from_regex(r"[a-z]*@[a-z]*", fullmatch=True)
    | st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=2), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    | st.sampled_from(["2026-03-01T10:15:00Z", "2026-03-01T10:15:00", "2026-03-01", "2026-03-01T10:15:00.5+03:00"])
)


@PROPERTY
@given(cls=st.sampled_from(CLASSES), data=st.data())
def test_agrees_with_the_emulator_and_the_codec(cls: Any, data: st.DataObject) -> None:
    """If one field has any value, the schema agrees with the emulator and the codec whether the event is valid."""
    envelope = json.loads(CODECS["seconds"].encode(cls(**fields_of(cls))))
    [fields] = envelope.values()
    field = data.draw(st.sampled_from([*SCHEMA["$defs"], "other"]))
    value = data.draw(VALUES)
    # For JSON Schema 1.0 is an integer, but not for the emulator and the codec, so such values are skipped.
    assume(not (isinstance(value, float) and value.is_integer()))
    fields[field] = value
    if data.draw(st.booleans()):
        del fields[data.draw(st.sampled_from(sorted(fields)))]
    valid = validator().is_valid(envelope)
    try:
        CODECS["seconds"].decode(json.dumps(envelope))
    except EventValidationError:
        decoded = False
    else:
        decoded = True

    [(name, body)] = envelope.items()
    assert valid == (check_event(name, body) == [])
    # The codec checks some texts more strictly than the schema, and reads null as a missing field.
    assert decoded or not valid or field in ("email", "phone", "timestamp")
    assert valid or not decoded or value is None


@pytest.mark.parametrize(
    "envelope",
    [
        {},
        [],
        "view",
        {"wishlist": {"sessionExternalId": "a"}},
        {"view": {"sessionExternalId": "a", "productId": 1}, "search": {"sessionExternalId": "a", "searchPhrase": "b"}},
        {"view": [{"sessionExternalId": "a", "productId": 1}]},
        {"view": None},
    ],
)
def test_no_envelope_is_neither_valid_nor_decoded(envelope: Any) -> None:
    """If a value is not an object with one known key, the schema and the codec refuse it."""
    assert not validator().is_valid(envelope)
    with pytest.raises(EventValidationError):
        CODECS["seconds"].decode(json.dumps(envelope))


def blocks() -> list[Any]:
    """Return the envelopes that the documentation's page shows."""
    return [
        json.loads(line) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
    ]


def test_the_page_shows_every_event() -> None:
    """If the page shows an envelope, it is valid and encodes to the same JSON; every event is shown once."""
    shown = blocks()
    assert [name for envelope in shown for name in envelope] == [cls.wire_name for cls in MINIMAL]
    for envelope in shown:
        validator().validate(envelope)
        assert json.loads(CODECS["seconds"].encode(CODECS["seconds"].decode(json.dumps(envelope)))) == envelope
    assert check_batch([envelope for envelope in shown if "categoryViewByCategoryPath" not in envelope]) == []
