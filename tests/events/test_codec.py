"""Encoding returns the JSON that the contract describes; decoding returns an event or raises `EventValidationError`."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import (
    EVENT_TYPES,
    AddToBasket,
    CategoryView,
    CategoryViewByCategoryPath,
    Codec,
    ConfigurationError,
    CustomEvent,
    EmailClick,
    Event,
    EventValidationError,
    GroupView,
    ImpressionContentClicked,
    ImpressionContentViewed,
    Order,
    RecomAddToBasket,
    RecomBlockViewed,
    RecomTap,
    Search,
    SetContact,
    View,
    WelcomeSequence,
)
from retailrocket_async._events.codec import join
from retailrocket_async._events.models import StockEvent, VisitorEvent
from tests.support.ids import shown
from tests.support.strategies import (
    CLASSES,
    CODECS,
    HOSTILE,
    INT64_MAX,
    INT64_MIN,
    MOMENT,
    PROPERTY,
    SESSION,
    custom_events,
    events,
    events_with_extra,
    fields_of,
    wire_values,
)

if TYPE_CHECKING:
    from retailrocket_async._events.codec import TimestampPrecision

CODEC = Codec()
EXACT = Codec("microseconds")

WIRE_NAMES = {
    "session_external_id": "sessionExternalId",
    "timestamp": "timestamp",
    "stock_id": "stockId",
    "product_id": "productId",
    "group_id": "groupId",
    "product_ids": "productIds",
    "quantity": "quantity",
    "price": "price",
    "transaction": "transaction",
    "category_id": "categoryId",
    "search_phrase": "searchPhrase",
    "contact_external_id": "contactExternalId",
    "email": "email",
    "phone": "phone",
    "custom_data": "customData",
    "recom_block_id": "recomBlockId",
    "impression_content_id": "impressionContentId",
    "mail_tracking_id": "mailTrackingId",
    "category_path": "categoryPath",
}


def strict(data: bytes) -> Any:
    """Parse JSON, but raise an error for NaN, Infinity and repeated keys, which `json.loads` accepts."""

    def constant(name: str) -> NoReturn:
        raise AssertionError(name)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(data.decode("utf-8"), parse_constant=constant, object_pairs_hook=members)


# --- to the wire ---

COMMON: dict[str, Any] = {"session_external_id": SESSION, "timestamp": MOMENT}
HEAD = b'"sessionExternalId":"60842392e4881c65e6c5e423","timestamp":"2018-09-15T15:53:00+00:00"'

EXAMPLES: list[tuple[Event, bytes, bytes]] = [
    (View(**COMMON, product_id=123456, stock_id="NewYork"), b"view", b',"productId":123456,"stockId":"NewYork"'),
    (View(**COMMON, product_id=123456), b"view", b',"productId":123456'),
    (
        GroupView(**COMMON, group_id=654321, product_ids=[123456, 234567, 345678], stock_id="NewYork"),
        b"groupView",
        b',"groupId":654321,"productIds":[123456,234567,345678],"stockId":"NewYork"',
    ),
    (AddToBasket(**COMMON, product_id=123456), b"addToBasket", b',"productId":123456'),
    (
        Order(**COMMON, product_id=123456, quantity=1, price=Decimal("1321.43"), transaction="135243"),
        b"order",
        b',"productId":123456,"quantity":1,"price":1321.43,"transaction":"135243"',
    ),
    (CategoryView(**COMMON, category_id=4321), b"categoryView", b',"categoryId":4321'),
    (Search(**COMMON, search_phrase="платье"), b"search", ',"searchPhrase":"платье"'.encode()),
    (
        SetContact(
            **COMMON,
            contact_external_id="c1",
            email="i@example.org",
            phone="+79161234567",
            stock_id="NewYork",
            custom_data={"b": [1, None]},
        ),
        b"setContact",
        b',"contactExternalId":"c1","stockId":"NewYork","email":"i@example.org","phone":"+79161234567","customData":{"b":[1,null]}',
    ),
    (SetContact(**COMMON, contact_external_id="c1"), b"setContact", b',"contactExternalId":"c1"'),
    (RecomBlockViewed(**COMMON, recom_block_id="b"), b"recomBlockViewed", b',"recomBlockId":"b"'),
    (RecomTap(**COMMON, product_id=1, recom_block_id="b"), b"recomTap", b',"productId":1,"recomBlockId":"b"'),
    (
        RecomAddToBasket(**COMMON, product_id=1, recom_block_id="b"),
        b"recomAddToBasket",
        b',"productId":1,"recomBlockId":"b"',
    ),
    (
        ImpressionContentViewed(**COMMON, impression_content_id="i"),
        b"impressionContentViewed",
        b',"impressionContentId":"i"',
    ),
    (
        ImpressionContentClicked(**COMMON, impression_content_id="i"),
        b"impressionContentClicked",
        b',"impressionContentId":"i"',
    ),
    (
        EmailClick(**COMMON, mail_tracking_id="5b488f27", custom_data={"a": 1}),
        b"emailClick",
        b',"mailTrackingId":"5b488f27","customData":{"a":1}',
    ),
    (WelcomeSequence(**COMMON, email="i@example.org"), b"welcomeSequence", b',"email":"i@example.org"'),
    (
        CategoryViewByCategoryPath(**COMMON, category_path="Кухня/Вилки"),
        b"categoryViewByCategoryPath",
        ',"categoryPath":"Кухня/Вилки"'.encode(),
    ),
    (
        View(**COMMON, product_id=1, extra={"link": {"name": "crm"}, "a": None}),
        b"view",
        b',"productId":1,"link":{"name":"crm"},"a":null',
    ),
]


@pytest.mark.parametrize(("event", "name", "rest"), EXAMPLES, ids=lambda value: getattr(value, "wire_name", ""))
def test_bytes(event: Event, name: bytes, rest: bytes) -> None:
    """If an event is encoded, the bytes are as in `EXAMPLES`: without fields that are None and unnecessary escapes."""
    body = b"{" + HEAD + rest + b"}"

    assert body == CODEC.encode_bare(event)
    assert b'{"' + name + b'":' + body + b"}" == CODEC.encode(event)


def test_every_event_has_an_example() -> None:
    """If an event is documented, `EXAMPLES` contains it."""
    assert set(EVENT_TYPES) == {event.event_name for event, _, _ in EXAMPLES}


def test_bytes_of_custom_event() -> None:
    """If a custom event is encoded, its fields are unchanged and in their order."""
    event = CustomEvent(name="newEvent", fields={"sessionExternalId": "a", "z": 1, "a": [1.0, "я"]})

    assert '{"newEvent":{"sessionExternalId":"a","z":1,"a":[1.0,"я"]}}'.encode() == CODEC.encode(event)


def test_bytes_of_batch() -> None:
    """If two events are joined, the bytes are as in the contract's example of a batch, without the trailing comma."""
    events = [View(**COMMON, product_id=123456), Search(**COMMON, search_phrase="x")]
    expected = b'[{"view":{%b,"productId":123456}},{"search":{%b,"searchPhrase":"x"}}]' % (HEAD, HEAD)

    assert expected == join(map(CODEC.encode, events))


def _object(event: Event) -> Any:
    """Return the JSON object that the contract requires for an event, without using the codec."""
    if isinstance(event, CustomEvent):
        return event.fields
    fields = attrs.asdict(event, recurse=False)
    extra = fields.pop("extra") or {}
    if isinstance(event, GroupView):
        fields["product_ids"] = list(event.product_ids)
    if isinstance(event, Order):
        fields |= {name: float(fields[name]) for name in ("quantity", "price") if type(fields[name]) is not int}
    fields["timestamp"] = fields["timestamp"].replace(microsecond=0).isoformat()
    return {WIRE_NAMES[name]: value for name, value in fields.items() if value is not None} | extra


def _documented(cls: type[VisitorEvent]) -> list[str]:
    """Return the Python names of the documented fields of an event class."""
    return [name for name in attrs.fields_dict(cls) if name != "extra"]


@given(events() | custom_events() | events_with_extra())
@PROPERTY
def test_json(event: Event) -> None:
    """If an event is encoded, the result is UTF-8 JSON: the contract's fields under the event's name."""
    envelope = strict(CODEC.encode(event))

    assert {event.event_name: _object(event)} == envelope
    assert envelope == CODEC.to_wire(event)


@given(events() | custom_events() | events_with_extra())
@PROPERTY
def test_envelope_of_bare(event: Event) -> None:
    """If an event is encoded with its envelope, the envelope contains exactly the bytes of `encode_bare`."""
    for codec in (CODEC, EXACT):
        bare = codec.encode_bare(event)

        assert b'{"%b":%b}' % (event.event_name.encode(), bare) == codec.encode(event)


@given(st.lists(events() | custom_events(), max_size=4))
@PROPERTY
def test_join(several: list[Event]) -> None:
    """If envelopes are joined, the result is one JSON array with the envelopes in order."""
    envelopes = list(map(CODEC.encode, several))

    assert [strict(envelope) for envelope in envelopes] == strict(join(envelopes)) == strict(join(iter(envelopes)))


class Shop(View):
    """A caller's subclass of an event class, which the codec refuses."""


@pytest.mark.parametrize(
    "stranger",
    [
        *(None, {"view": {}}, b"{}", object(), View),
        *(Event(), VisitorEvent(session_external_id="a"), StockEvent(session_external_id="a")),
        Shop(session_external_id="a", product_id=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_event(stranger: Any) -> None:
    """If a value is not an event of the package, each method of the codec raises an error with the value's type."""
    for door in (CODEC.encode, CODEC.encode_bare, CODEC.to_wire):
        with pytest.raises(EventValidationError, match=f"not {type(stranger).__name__}$"):
            door(stranger)


# --- timestamp ---


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("seconds", "2018-09-15T15:53:59+00:00"),
        ("milliseconds", "2018-09-15T15:53:59.999+00:00"),
        ("microseconds", "2018-09-15T15:53:59.999999+00:00"),
    ],
)
def test_precision(precision: TimestampPrecision, expected: str) -> None:
    """If a timestamp is more precise than the codec, its end is cut off: rounding could move it into the future."""
    event = View(**fields_of(View, timestamp=MOMENT.replace(second=59, microsecond=999_999)))
    codec = Codec(precision)

    assert expected == codec.to_wire(event)["view"]["timestamp"]
    assert precision == codec.timestamp_precision


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (MOMENT.replace(tzinfo=timezone(timedelta(hours=3))), "2018-09-15T15:53:00+03:00"),
        (MOMENT.replace(tzinfo=timezone(timedelta(minutes=-1))), "2018-09-15T15:53:00-00:01"),
        (MOMENT.replace(tzinfo=timezone(timedelta(minutes=-1439))), "2018-09-15T15:53:00-23:59"),
        (MOMENT.replace(tzinfo=timezone(timedelta(hours=5, minutes=45))), "2018-09-15T15:53:00+05:45"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00+00:00"),
        (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59+00:00"),
    ],
    ids=str,
)
def test_offset(moment: datetime, expected: str) -> None:
    """If a timestamp has any offset, it is encoded with that offset, in the documented format."""
    assert expected == CODEC.to_wire(View(**fields_of(View, timestamp=moment)))["view"]["timestamp"]


@pytest.mark.parametrize("precision", ["minutes", "", "SECONDS", None, 1, [], "auto"])
def test_unknown_precision(precision: Any) -> None:
    """If the precision is unknown, the constructor raises an error that lists the allowed precisions."""
    with pytest.raises(ConfigurationError, match="must be one of 'seconds', 'milliseconds', 'microseconds', not"):
        Codec(precision)


# --- round trip ---


@given(events() | custom_events())
@PROPERTY
def test_round_trip(event: Event) -> None:
    """If the precision is microseconds, a decoded event equals the encoded event."""
    assert event == EXACT.from_wire(EXACT.to_wire(event), allow_custom=True)
    assert event == EXACT.decode(EXACT.encode(event), allow_custom=True)
    assert event == EXACT.decode(EXACT.encode(event).decode(), allow_custom=True)


@given(events(), st.sampled_from([("seconds", 1_000_000), ("milliseconds", 1000)]))
@PROPERTY
def test_cut_round_trip(event: VisitorEvent, precision: tuple[TimestampPrecision, int]) -> None:
    """If the precision is coarser, a decoded event equals the encoded event with the cut timestamp."""
    name, step = precision
    codec = CODECS[name]
    fraction = event.timestamp.microsecond
    expected = attrs.evolve(event, timestamp=event.timestamp.replace(microsecond=fraction - fraction % step))

    assert expected == codec.decode(codec.encode(event))
    assert codec.encode(expected) == codec.encode(event)


@given(events() | custom_events())
@PROPERTY
def test_bytes_round_trip(event: Event) -> None:
    """If bytes are decoded and encoded again, the bytes are equal."""
    sent = EXACT.encode(event)

    assert sent == EXACT.encode(EXACT.decode(sent, allow_custom=True))


@pytest.mark.parametrize("price", [Decimal("9.90"), Decimal("0.1"), Decimal("1e20"), Decimal(0), Decimal("1321.43")])
def test_decimal_round_trip(price: Decimal) -> None:
    """If an order has a Decimal price, the decoded order is equal, and its price is the number that was sent."""
    order = Order(**fields_of(Order, price=price))
    back = CODEC.decode(CODEC.encode(order))

    assert order == back
    assert isinstance(back, Order)
    assert float(price) == back.price


# --- from the wire ---

BODIES: dict[type[VisitorEvent], dict[str, Any]] = {
    cls: json.loads(CODEC.encode_bare(cls(**fields_of(cls)))) for cls in CLASSES
}


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_field(cls: type[VisitorEvent]) -> None:
    """If a required field is missing, decoding raises an error with the field's Python name."""
    for field in attrs.fields(cls):
        if field.default is not attrs.NOTHING:
            continue
        body = {name: value for name, value in BODIES[cls].items() if name != WIRE_NAMES[field.name]}
        with pytest.raises(EventValidationError) as caught:
            CODEC.from_wire({cls.wire_name: body})

        assert f"{cls.wire_name}.{field.name} is required" == str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_optional_fields(cls: type[VisitorEvent]) -> None:
    """If an optional field is missing, it is None after decoding; a missing timestamp is the time of decoding."""
    body = {name: value for name, value in BODIES[cls].items() if name != "timestamp"}
    before = datetime.now(UTC)
    event = CODEC.from_wire({cls.wire_name: body})

    assert isinstance(event, VisitorEvent)
    assert before <= event.timestamp <= datetime.now(UTC)
    assert {None} >= {getattr(event, field.name) for field in attrs.fields(cls) if field.default is None}


@pytest.mark.parametrize("cls", CLASSES)
def test_null_of_optional_field(cls: type[VisitorEvent]) -> None:
    """If an optional field is null, as in database exports, it counts as missing and is not encoded again."""
    nulls = {WIRE_NAMES[name]: None for name in _documented(cls) if attrs.fields_dict(cls)[name].default is None}
    event = CODEC.from_wire({cls.wire_name: BODIES[cls] | nulls})

    assert BODIES[cls] == CODEC.to_wire(event)[cls.wire_name]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "unknown",
    ["productID", "product_id", "session_external_id", "groupView", "", "x" * 60, "a\nb", "\x00", "price "],
)
def test_unknown_field(cls: type[VisitorEvent], unknown: str) -> None:
    """If an event has an unknown field, decoding raises an error that names the field."""
    with pytest.raises(EventValidationError) as caught:
        CODEC.from_wire({cls.wire_name: BODIES[cls] | {unknown: 1}})

    assert f"{cls.wire_name} has unknown fields: {unknown!r}" == str(caught.value)


def test_several_unknown_fields() -> None:
    """If several fields are unknown, the error names them in sorted order, but at most the first eight."""
    with pytest.raises(EventValidationError, match=r"unknown fields: 'a', 'b', 'c'$"):
        CODEC.from_wire({"view": BODIES[View] | {"c": 1, "a": 1, "b": 1}})
    with pytest.raises(EventValidationError, match="has unknown fields: ") as caught:
        CODEC.from_wire({"view": BODIES[View] | {f"{number}{'x' * 10_000}": 1 for number in range(1000)}})

    assert str(caught.value).endswith(", ...")
    assert len(str(caught.value)) < 1000


STRING = {"sessionExternalId", "stockId", "transaction", "searchPhrase", "contactExternalId", "email", "phone"}
STRING |= {"recomBlockId", "impressionContentId", "timestamp", "mailTrackingId", "categoryPath"}
INTEGER = {"productId", "groupId", "categoryId"}
NUMBER = {"quantity", "price"}
JSON_TYPES: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "integer": 1,
    "fraction": 1.5,
    "whole fraction": 1.0,
    "string": "1",
    "string of a list": "[1]",
    "list": [],
    "list of strings": ["1"],
    "list of integers": [1],
    "object": {},
    "object with a member": {"a": 1},
}


def _may_be(field: str, kind: str) -> bool:
    if field in STRING:
        return kind.startswith("string")
    if field in INTEGER:
        return kind == "integer"
    if field in NUMBER:
        return kind in ("integer", "fraction", "whole fraction")
    return kind.startswith("object" if field == "customData" else "list of integers")


@pytest.mark.parametrize("kind", JSON_TYPES)
@pytest.mark.parametrize("cls", CLASSES)
def test_wrong_json_type(cls: type[VisitorEvent], kind: str) -> None:
    """If a value has a wrong JSON type, decoding raises an error that names the field; "1" is not converted to 1."""
    optional = {field.name for field in attrs.fields(cls) if field.default is None}
    for name in _documented(cls):
        wire_name = WIRE_NAMES[name]
        if _may_be(wire_name, kind) or (kind == "null" and name in optional):
            continue
        with pytest.raises(EventValidationError) as caught:
            CODEC.from_wire({cls.wire_name: BODIES[cls] | {wire_name: JSON_TYPES[kind]}})

        assert (cls.wire_name, name) == (caught.value.event, caught.value.field.partition("[")[0])


@pytest.mark.parametrize("cls", CLASSES)
def test_values_are_not_coerced(cls: type[VisitorEvent]) -> None:
    """If a value is decoded, its type is kept: 1.0 remains a float. Only a list of ids becomes a tuple."""
    event = CODEC.from_wire({cls.wire_name: BODIES[cls]})
    kinds = {"timestamp": datetime, "product_ids": tuple}
    for name in _documented(cls):
        value = getattr(event, name)

        assert value is None or kinds.get(name, type(BODIES[cls].get(WIRE_NAMES[name]))) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "2018-09-15T15:53:00+00:00",
        "2018-09-15T15:53:00Z",
        "2018-09-15T18:53:00+03:00",
        "2018-09-15 15:53:00+00:00",
        "20180915T155300Z",
        "2018-09-15T15:53:00.000000+00:00",
    ],
)
def test_timestamp_is_read(text: str) -> None:
    """If a timestamp is in any ISO 8601 format with an offset, it is decoded to the right time."""
    event = CODEC.from_wire({"view": BODIES[View] | {"timestamp": text}})

    assert isinstance(event, View)
    assert MOMENT == event.timestamp


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2018-09-15", "2018-09-15T15:53:00", "2018-09-15T15:53:00+00:00:01", "2018-02-30T00:00:00Z"),
        *("2018-09-15T25:00:00Z", "1537026780", "2018-09-15T15:53:00+24:00", "\ud800", "٢٠١٨-09-15T15:53:00Z"),
        *(
            "0000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "2018-09-15T15:53:00Z" * 100_000,
            "2018-09-15T15:53:00Z\x00",
            "2018-09-15T15:53:00Z\x00garbage",
            "2018-09-15T15:53\x00+03:00",
            "2018-09-15\ud80015:53:00Z",
        ),
    ],
    ids=lambda text: repr(text)[:40],
)
def test_timestamp_is_refused(text: str) -> None:
    """If a text is not a time with an offset, decoding raises an error that shows the text, shortened."""
    with pytest.raises(EventValidationError, match=r"view\.timestamp must be an aware datetime") as caught:
        CODEC.from_wire({"view": BODIES[View] | {"timestamp": text}})

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "envelope",
    [None, 1, 1.5, "view", True, [], [{"view": {}}], {}, {"view": {}, "search": {}}, object(), b"{}"],
    ids=shown,
)
def test_no_envelope(envelope: Any) -> None:
    """If the envelope is not an object with exactly one key, decoding raises an error."""
    for allow_custom in (False, True):
        with pytest.raises(EventValidationError, match="must be an object with exactly one key"):
            CODEC.from_wire(envelope, allow_custom=allow_custom)


@pytest.mark.parametrize("body", [None, 1, "x", [], True, 1.5], ids=shown)
@pytest.mark.parametrize("name", EVENT_TYPES)
def test_no_body(name: str, body: Any) -> None:
    """If the value under the event's name is not an object, decoding raises an error that names the value's type."""
    for allow_custom in (False, True):
        with pytest.raises(EventValidationError, match=f"^{name} must be an object, not {type(body).__name__}$"):
            CODEC.from_wire({name: body}, allow_custom=allow_custom)


@pytest.mark.parametrize("name", ["View", "newEvent", "visitorEvents", "", "x" * 10_000_000, "\ud800", 1, None, ("a",)])
def test_unknown_event(name: Any) -> None:
    """If the event's name is unknown, the error lists the known names, because the name may be misspelled."""
    with pytest.raises(EventValidationError, match="must have one of these names: view, groupView, ") as caught:
        CODEC.from_wire({name: {}})

    assert name is caught.value.value
    assert len(str(caught.value)) < 400


def test_allow_custom() -> None:
    """If `allow_custom` is set, an unknown event becomes a `CustomEvent`; a documented event keeps its class."""
    custom = CODEC.from_wire({"newEvent": {"a": 1}}, allow_custom=True)
    known = CODEC.decode(CODEC.encode(View(**fields_of(View))), allow_custom=True)

    assert CustomEvent(name="newEvent", fields={"a": 1}) == custom
    assert View(**fields_of(View)) == known


@pytest.mark.parametrize(
    "envelope",
    [
        *({"visitorEvents": {}}, {"new-event": {}}, {"": {}}, {1: {}}, {"x" * 51: {}}, {"\ud800": {}}),
        *({"newEvent": None}, {"newEvent": []}, {"newEvent": "x"}, {"newEvent": 1}, {"newEvent": {1: 1}}),
        *({"newEvent": {"a": math.nan}}, {"newEvent": {"a": "\ud800"}}),
    ],
    ids=shown,
)
def test_custom_event_refused(envelope: Any) -> None:
    """If a decoded custom event breaks a rule of `CustomEvent`, decoding raises an error."""
    with pytest.raises(EventValidationError):
        CODEC.from_wire(envelope, allow_custom=True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "column 1"),
        (b"{", "column 2"),
        (b'{"view":', "column 9"),
        (b'{"view":{}} x', "column 13"),
        (b"{'view':{}}", "column 2"),
        (b'{"view":{},}', "column"),
        (b'[{"view":{}},]', "column"),
        (b'{"view":\xff}', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        ('"\ud800"', "surrogate"),
        (b'"\\ud800"', "surrogate"),
        (b'{"order":{"price":NaN}}', "column"),
        (b'{"order":{"price":-Infinity}}', "column"),
        (b'{"order":{"price":1e999}}', "column"),
        (b'{"order":{"price":1%b}}' % (b"0" * 400), "column"),
        (b"[" * 1_000_000, "depth"),
        (b'{"a":' * 100_000, "depth"),
        (b'{"view":"\x00"}', "column"),
        (None, "Input must be"),
        (1, "Input must be"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_no_json(data: Any, said: str) -> None:
    """If the text is not JSON, decoding raises an error that says where the first mistake is."""
    with pytest.raises(EventValidationError, match=r"^event must be JSON: ") as caught:
        CODEC.decode(data)

    assert said in str(caught.value)


def _envelope(field: bytes, value: bytes, name: bytes = b"view") -> bytes:
    return b'{"%b":{"sessionExternalId":"a","productId":1,"%b":%b}}' % (name, field, value)


@pytest.mark.parametrize(
    "data",
    [
        _envelope(b"productId", b"1e999"),
        _envelope(b"productId", b"1" + b"0" * 400),
        _envelope(b"productId", b"1" * 10_000_000),
        _envelope(b"productId", b"0.%b" % (b"1" * 10_000_000)),
        _envelope(b"productId", str(INT64_MAX + 1).encode()),
        _envelope(b"productId", str(INT64_MIN - 1).encode()),
        _envelope(b"productId", b"-0.0"),
        _envelope(b"productId", b"1.0"),
        _envelope(b"productId", b"1e2"),
        _envelope(b"productId", b"[" * 900 + b"]" * 900),
        _envelope(b"stockId", b'"%b"' % (b"x" * 10_000_000)),
        _envelope(b"sessionExternalId", b'"%b"' % (b"x" * 10_000_000)),
        _envelope(b"sessionExternalId", b'"\\u0000"'),
        _envelope(b"x" * 10_000_000, b"1"),
        _envelope(b"productId", b"1", name=b"x" * 10_000_000),
        _envelope(b"timestamp", b'"%b"' % (b"9" * 10_000_000)),
        _envelope(b"timestamp", b"1e9"),
        _envelope(b"a", b"[%b]" % b",".join([b"{}"] * 1_000_000)),
    ],
    ids=lambda data: f"{data[:60].decode()}... of {len(data)}",
)
def test_hostile_json(data: bytes) -> None:
    """If JSON is hostile, decoding raises an `EventValidationError` with a short message."""
    with pytest.raises(EventValidationError) as caught:
        CODEC.decode(data)

    assert len(str(caught.value)) < 400


LONG = ["9223372036854775808", "-9223372036854775809", "18446744073709551616", "-18446744073709551617", "9" * 300]


@pytest.mark.parametrize("number", LONG)
def test_long_integer(number: str) -> None:
    """If an integer has more than 64 bits, decoding raises an error instead of reading another number."""
    contact = '"sessionExternalId":"a","contactExternalId":"a"'
    bodies = [
        ("view", "product_id", f'{{"sessionExternalId":"a","productId":{number}}}'),
        ("groupView", "product_ids[1]", f'{{"sessionExternalId":"a","groupId":1,"productIds":[1,{number}]}}'),
        ("newEvent", "fields", f'{{"productId":{number}}}'),
        ("newEvent", "fields", f'{{"a":"\\"{{","b":[{{"c":{number}}}]}}'),
        ("setContact", "custom_data", f'{{{contact},"customData":{{"a":{number}}}}}'),
    ]
    for name, field, body in bodies:
        text = f'{{"{name}":{body}}}'
        for data in (text, text.encode()):
            with pytest.raises(EventValidationError, match="64 bits") as caught:
                CODEC.decode(data, allow_custom=True)

            assert (name, field) == (caught.value.event, caught.value.field[: len(field)])


@pytest.mark.parametrize(
    "data",
    [
        {"a": "18446744073709551616"},
        {"18446744073709551616": 1},
        {"\\": '"', "a": '\\"18446744073709551616\\'},
        {"a": 1e300, "b": 2.0**64, "c": -1.5e30},
        {"a": 0.12345678901234567, "b": [INT64_MAX, INT64_MIN]},
        {"a": "x" * 100_000 + "9" * 20},
    ],
    ids=lambda data: repr(data)[:40],
)
def test_no_long_integer(data: dict[str, Any]) -> None:
    """If long digits are in texts, keys, fractions or exponents, they are not refused as long integers."""
    event = CustomEvent(name="newEvent", fields=data)

    assert event == CODEC.decode(CODEC.encode(event), allow_custom=True)
    assert event == CODEC.decode(json.dumps({"newEvent": data}), allow_custom=True)


TWICE = [
    (b'{"view":{},"view":{"sessionExternalId":"a","productId":7}}', "'view'"),
    (b'{"view":{"sessionExternalId":"a","productId":"x","productId":7}}', "'productId'"),
    (
        b'{"view":{"sessionExternalId":"a","productId":7,"timestamp":1,"timestamp":"2026-01-01T00:00:00+00:00"}}',
        "'times",
    ),
    (b'{"view":{"sessionExternalId":"a","product\\u0049d":6,"productId":7}}', "'productId'"),
    # A check that only counts colons would miss this repeated key, because the escaped colon makes up for the colon
    # that is lost with the key.
    (b'{"view":{"sessionExternalId":"\\u003a","productId":6,"productId":7}}', "'productId'"),
    # A check that only compares lengths would miss this repeated key: the number becomes longer when it is encoded
    # again, which makes up for the bytes that are lost with the key.
    (b'{"view":{"sessionExternalId":"a","productId":6,"productId":7,"price":1e12}}', "'productId'"),
    (b'{"wishlist":{"sessionExternalId":"a","deep":[[{"x":{"a:b":1,"a:b":{}}}]]}}', "'a:b'"),
    (b'{"wishlist":{"a":' + b"[" * 300 + b'{"x":1,"x":2}' + b"]" * 300 + b"}}", "'x'"),
    (b'{"wishlist":{"a":"' + b"x" * 70_000 + b'","b":1,"b":2}}', "'b'"),
]


@pytest.mark.parametrize(("text", "named"), TWICE, ids=[text[:60] for text, _ in TWICE])
def test_a_key_twice(text: bytes, named: str) -> None:
    """If an object at any depth has a key twice, in any spelling, every decoder raises an error."""
    for read in (CODEC.decode, CODEC.examined):
        for spelt in (text, b" " + text):
            with pytest.raises(EventValidationError, match=rf"each key once, but has twice: {named}"):
                read(spelt, allow_custom=True)


@pytest.mark.parametrize(
    "text",
    [
        b'{"search":{"sessionExternalId":"a","searchPhrase":"a:b"}}',
        b'{ "search" : { "sessionExternalId" : "a" , "searchPhrase" : "\\u003a\\u003a" } }',
        b'{"wishlist":{"productId":1,"more":{"productId":1},"list":[{"productId":1},{"productId":"::"}]}}',
        b'{"wishlist":{"a":"\\"a\\":\\\\","b":"\\u003A"}}',
    ],
)
def test_a_key_in_several_objects(text: bytes) -> None:
    """If a key occurs in different objects, or in a string, the text is accepted."""
    assert CODEC.decode(text, allow_custom=True) is not None
    assert CODEC.examined(text, allow_custom=True)[2]


class Pairs(list[Any]):
    """The (key, value) pairs of a JSON object; a key may occur twice."""


def pairs_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Pairs]:
    """Return a Hypothesis strategy for objects with few different keys."""
    return st.lists(st.tuples(st.sampled_from(["a", "b", ":", '"', "\u003a"]), values), max_size=4).map(Pairs)


def written(value: Any) -> str:
    """Return the value as JSON text, with some characters escaped."""
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(name)}:{written(inner)}" for name, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value).replace(":", "\\u003a") if isinstance(value, str) and "a" in value else json.dumps(value)


@given(st.recursive(st.none() | st.text('ab:"\\'), lambda inner: st.lists(inner) | pairs_of(inner)))
def test_keys_twice_are_found(value: object) -> None:
    """If a text is decoded, it is refused exactly if the standard library finds a repeated key in it."""
    text = b'{"wishlist":{"a":%b}}' % written(value).encode()
    twice: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        twice.extend(name for name in names if names.count(name) > 1)

    json.loads(text, object_pairs_hook=look)
    found = False
    try:
        CODEC.decode(text, allow_custom=True)
    except EventValidationError as error:
        found = "each key once" in str(error)

    assert bool(twice) == found


def test_large_search_phrase() -> None:
    """If a search phrase is very long (some megabytes) and contains NUL, it is decoded as it was encoded."""
    event = Search(**fields_of(Search, search_phrase="\x00я😀" * 1_000_000))

    assert event == CODEC.decode(CODEC.encode(event))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_objects(name: str) -> None:
    """If any Python object stands in place of JSON, reading returns an event or raises `EventValidationError`."""
    value = HOSTILE[name]
    _read(value)
    _read({"newEvent": value})
    for cls in CLASSES:
        _read({cls.wire_name: value})
        for field in _documented(cls):
            _read({cls.wire_name: BODIES[cls] | {WIRE_NAMES[field]: value}})


@given(wire_values())
@PROPERTY
def test_arbitrary_object(value: Any) -> None:
    """If any JSON value is read, the result is an event or an `EventValidationError`."""
    _read(value)


@given(st.data())
@PROPERTY
def test_arbitrary_fields(data: st.DataObject) -> None:
    """If an envelope has any values in its fields, the result is an event or an `EventValidationError`."""
    cls = data.draw(st.sampled_from(CLASSES))
    body = data.draw(
        st.dictionaries(st.sampled_from(sorted(WIRE_NAMES.values())) | st.text(), wire_values(), max_size=6)
    )
    _read({cls.wire_name: BODIES[cls] | body})
    _read({cls.wire_name: body})
    _read({"newEvent": body})


@given(st.binary() | st.text() | st.text(st.characters(categories=["Cs", "L", "P"])))
@PROPERTY
def test_arbitrary_text(data: bytes | str) -> None:
    """If any bytes or text are decoded, the result is an event or an `EventValidationError`."""
    _decode(data)


@given(events() | custom_events(), st.data())
@PROPERTY
def test_damaged_bytes(event: Event, data: st.DataObject) -> None:
    """If the bytes of an event are damaged, the result is an event or an `EventValidationError`."""
    whole = EXACT.encode(event)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 10)))
    _decode(whole[:start] + data.draw(st.binary(max_size=10)) + whole[end:])


def _read(envelope: Any) -> None:
    for allow_custom in (False, True):
        try:
            event = EXACT.from_wire(envelope, allow_custom=allow_custom)
        except EventValidationError:
            continue

        assert event == EXACT.decode(EXACT.encode(event), allow_custom=True)


def _decode(data: bytes | str) -> None:
    for allow_custom in (False, True):
        try:
            event = EXACT.decode(data, allow_custom=allow_custom)
        except EventValidationError:
            continue

        assert event == EXACT.decode(EXACT.encode(event), allow_custom=True)
