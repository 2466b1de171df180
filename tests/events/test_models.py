"""The event classes: the contract's events, custom events, and the functions that create events."""

from __future__ import annotations

import copy
import math
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given

from retailrocket_async import (
    EVENT_TYPES,
    Codec,
    CustomEvent,
    Event,
    EventValidationError,
    GroupView,
    Order,
    SetContact,
    View,
    new_session_id,
    order_lines,
)
from retailrocket_async._events.models import StockEvent, VisitorEvent, utc_now
from tests.fuzz.draw import EndlessMapping, FickleMapping
from tests.support.ids import shown
from tests.support.strategies import (
    BY_CLASS,
    CLASSES,
    HOSTILE,
    MINIMAL,
    MOMENT,
    PROPERTY,
    SESSION,
    BrokenMapping,
    Daylight,
    FadingZone,
    Liar,
    Moment,
    custom_events,
    events,
    fields_of,
    json_objects,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# The events of the API's contract: the names of each event's required fields, and of its optional fields.
CONTRACT = {
    "view": ("sessionExternalId productId", "stockId timestamp"),
    "groupView": ("sessionExternalId groupId productIds", "stockId timestamp"),
    "addToBasket": ("sessionExternalId productId", "stockId timestamp"),
    "order": ("sessionExternalId productId quantity price transaction", "stockId timestamp"),
    "categoryView": ("sessionExternalId categoryId", "timestamp"),
    "search": ("sessionExternalId searchPhrase", "stockId timestamp"),
    "setContact": ("sessionExternalId contactExternalId", "email phone stockId customData timestamp"),
    "recomBlockViewed": ("sessionExternalId recomBlockId", "timestamp"),
    "recomTap": ("sessionExternalId productId recomBlockId", "stockId timestamp"),
    "recomAddToBasket": ("sessionExternalId productId recomBlockId", "stockId timestamp"),
    "impressionContentViewed": ("sessionExternalId impressionContentId", "timestamp"),
    "impressionContentClicked": ("sessionExternalId impressionContentId", "timestamp"),
    "emailClick": ("sessionExternalId mailTrackingId", "customData timestamp"),
    "welcomeSequence": ("sessionExternalId email", "timestamp"),
    "categoryViewByCategoryPath": ("sessionExternalId categoryPath", "timestamp"),
}


def snake(camel: str) -> str:
    """Return a JSON name as this package spells it in Python, for example "productId" as "product_id"."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in camel)


@pytest.mark.parametrize("name", CONTRACT)
def test_fields_are_the_contracts(name: str) -> None:
    """If an event is in the contract, its class has the contract's fields and requires the same ones."""
    fields = [field for field in attrs.fields(EVENT_TYPES[name]) if field.name != "extra"]
    required, optional = CONTRACT[name]

    assert set(map(snake, required.split())) == {field.name for field in fields if field.default is attrs.NOTHING}
    assert set(map(snake, optional.split())) == {field.name for field in fields if field.default is not attrs.NOTHING}


def test_types_are_the_contracts() -> None:
    """If an event is in the contract, there is one class for it, and these tests have samples of the class."""
    assert list(CONTRACT) == list(EVENT_TYPES)
    assert list(CONTRACT) == [cls.wire_name for cls in EVENT_TYPES.values()]
    assert CLASSES == list(BY_CLASS) == list(MINIMAL)


@pytest.mark.parametrize("cls", CLASSES)
def test_wire_name(cls: type[VisitorEvent]) -> None:
    """If an event is created, its name is its class's name with a small first letter."""
    event = cls(**fields_of(cls))

    assert cls.__name__[0].lower() + cls.__name__[1:] == event.event_name


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_field(cls: type[VisitorEvent]) -> None:
    """If a required field is missing, the constructor raises `TypeError`."""
    for field in ("session_external_id", *MINIMAL[cls]):
        fields = fields_of(cls)
        del fields[field]
        with pytest.raises(TypeError, match=field):
            cls(**fields)


@given(events() | custom_events())
@PROPERTY
def test_frozen(event: Event) -> None:
    """If an attribute of an event is changed, added or deleted, an error is raised."""
    for field in attrs.fields_dict(type(event)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(event, field, getattr(event, field))
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            delattr(event, field)
    with pytest.raises(AttributeError):
        event.note = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [*CLASSES, CustomEvent, Event, VisitorEvent, StockEvent])
def test_slotted(cls: type[Event]) -> None:
    """If a class is an event, its instances have no `__dict__`, because a buffer may contain 100,000 events."""
    assert "__slots__" in vars(cls)
    assert 0 == cls.__dictoffset__


@given(events() | custom_events())
@PROPERTY
def test_hash(event: Event) -> None:
    """If an event is copied or unpickled, the copy is equal and has the same hash."""
    for other in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event)), attrs.evolve(event)):
        assert (event, hash(event)) == (other, hash(other))


OTHER: dict[str, Any] = {
    "session_external_id": "other",
    "timestamp": MOMENT + timedelta(microseconds=1),
    "stock_id": "other",
    "product_id": 7,
    "group_id": 7,
    "product_ids": (7,),
    "quantity": 7,
    "price": 7,
    "transaction": "other",
    "category_id": 7,
    "search_phrase": "other",
    "contact_external_id": "other",
    "email": "other@example.org",
    "phone": "+70000000000",
    "custom_data": {"other": 7},
    "recom_block_id": "other",
    "impression_content_id": "other",
    "mail_tracking_id": "other",
    "category_path": "other",
    "extra": {"other": 7},
}


@pytest.mark.parametrize("cls", CLASSES)
def test_differing_events(cls: type[VisitorEvent]) -> None:
    """If two events differ in one field, they are not equal."""
    event = cls(**fields_of(cls))
    for field in attrs.fields_dict(cls):
        assert event != cls(**fields_of(cls, **{field: OTHER[field]}))


def test_same_fields_of_another_event() -> None:
    """If two events have different classes, they are not equal, even if their fields are equal."""
    viewed, clicked = EVENT_TYPES["impressionContentViewed"], EVENT_TYPES["impressionContentClicked"]

    assert viewed(**fields_of(viewed)) != clicked(**fields_of(clicked))


@pytest.mark.parametrize("amounts", [(Decimal("9.90"), 9.9), (Decimal(2), 2, 2.0), (0, -0.0, Decimal("1e-400"))])
def test_amounts_are_compared_as_sent(amounts: tuple[Any, ...]) -> None:
    """If amounts are the same JSON number, the orders are equal and have the same hash, whatever the Python types."""
    orders = {Order(**fields_of(Order, price=amount)) for amount in amounts}

    assert 1 == len(orders)


# --- timestamp ---


@pytest.mark.parametrize("cls", CLASSES)
def test_default_timestamp(cls: type[VisitorEvent]) -> None:
    """If no timestamp is given, the event's timestamp is the time of its construction, in UTC."""
    fields = fields_of(cls)
    del fields["timestamp"]
    before = datetime.now(UTC)
    event = cls(**fields)
    after = datetime.now(UTC)

    assert before <= event.timestamp <= after
    assert UTC is event.timestamp.tzinfo


def test_utc_now() -> None:
    """If `utc_now` is called, it returns an aware datetime in UTC."""
    assert UTC is utc_now().tzinfo


@pytest.mark.parametrize(
    "moment",
    [
        MOMENT,
        MOMENT.replace(tzinfo=timezone(timedelta(hours=3))),
        MOMENT.replace(tzinfo=Daylight()),
        MOMENT.replace(tzinfo=Daylight(), fold=1),
        Moment(2018, 9, 15, 18, 53, 0, 1, tzinfo=timezone(timedelta(hours=3))),
    ],
    ids=shown,
)
def test_timestamp_is_fixed(moment: datetime) -> None:
    """If a timestamp is given, its time and offset are kept, but it becomes a plain `datetime`."""
    kept = View(**fields_of(View, timestamp=moment)).timestamp

    assert (moment.isoformat(), datetime, timezone) == (kept.isoformat(), type(kept), type(kept.tzinfo))
    assert timedelta(0) == moment - kept


def test_zone_is_asked_once() -> None:
    """If an event is created, its time zone is called only once, because an error in a later call would be fatal."""
    event = View(**fields_of(View, timestamp=MOMENT.replace(tzinfo=FadingZone())))

    assert b'"timestamp":"2018-09-15T15:53:00+03:00"' in Codec().encode(event)


# --- objects that the caller may change later ---


def test_custom_data_is_copied() -> None:
    """If the caller later changes the object that was passed as custom data, the event does not change."""
    inner: dict[str, Any] = {"size": [1, 2]}
    data = {"basket": inner, "list": [inner]}
    contact = SetContact(**fields_of(SetContact, custom_data=data))
    custom = CustomEvent(name="newEvent", fields=data)
    inner["size"].append(3)
    inner["new"] = 1
    data["more"] = []
    expected = {"basket": {"size": [1, 2]}, "list": [{"size": [1, 2]}]}

    assert expected == contact.custom_data
    assert expected == custom.fields


@given(json_objects())
@PROPERTY
def test_custom_data_is_plain(data: dict[str, Any]) -> None:
    """If custom data is given, the event has an equal copy that consists of plain dicts and lists."""
    kept = SetContact(**fields_of(SetContact, custom_data=data)).custom_data

    assert data == kept
    assert kept is not data


def test_product_ids_are_copied() -> None:
    """If the caller changes its list of ids later, the event does not change."""
    ids = [1, 2]
    event = GroupView(**fields_of(GroupView, product_ids=ids))
    ids.append(3)

    assert (1, 2) == event.product_ids


# --- custom events ---


@pytest.mark.parametrize("name", ["a", "newEvent", "View", "X" * 50, "v2"])
def test_custom_name(name: str) -> None:
    """If a name consists of letters and digits and begins with a letter, a custom event accepts it."""
    event = CustomEvent(name=name, fields={})

    assert name == event.event_name


@pytest.mark.parametrize("name", ["", "2v", "a" * 51, "a-b", "a/b", "../x", "a?b", "é", "a\n", "a b", b"a", None, 1])
def test_custom_name_refused(name: Any) -> None:
    """If a custom event's name has other characters, which could change the URL, an error shows the name."""
    with pytest.raises(EventValidationError) as caught:
        CustomEvent(name=name, fields={})

    assert ("CustomEvent", "name", name) == (caught.value.event, caught.value.field, caught.value.value)


def test_custom_name_of_a_liar() -> None:
    """If a custom event's name is an object whose methods all raise, the usual error for a wrong name is raised."""
    with pytest.raises(EventValidationError, match=r"^CustomEvent\.name must be 1-50 ASCII letters"):
        CustomEvent(name=HOSTILE["liar"], fields={})


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_custom_name_of_documented_event(name: str) -> None:
    """If a custom event has a documented event's name, the error names the class to use."""
    with pytest.raises(EventValidationError, match=f"construct {EVENT_TYPES[name].__name__} instead"):
        CustomEvent(name=name, fields={})


def test_custom_name_of_batch() -> None:
    """If a custom event has the batch endpoint's name, an error is raised."""
    with pytest.raises(EventValidationError, match="is the batch endpoint"):
        CustomEvent(name="visitorEvents", fields={})


@pytest.mark.parametrize("fields", [None, [], "x", {1: 1}, {"a": math.nan}, {"a": object()}], ids=shown)
def test_custom_fields_refused(fields: Any) -> None:
    """If the fields are not a JSON object, the error names the event, but does not show the fields."""
    with pytest.raises(EventValidationError) as caught:
        CustomEvent(name="newEvent", fields=fields)

    assert ("newEvent", "fields") == (caught.value.event, caught.value.field[:6])
    assert "got" not in str(caught.value)


def test_custom_event_has_no_timestamp() -> None:
    """If a custom event is encoded, no timestamp is added."""
    assert b'{"newEvent":{}}' == Codec().encode(CustomEvent(name="newEvent", fields={}))


# --- order_lines ---


LINE: dict[Any, Any] = {"product_id": 1, "quantity": 2, "price": Decimal("9.90")}


def test_order_lines() -> None:
    """If a basket has several lines, each becomes one order with the same transaction, visitor and timestamp."""
    lines = [LINE, {"product_id": 2, "quantity": 0.5, "price": 1, "stock_id": "Moscow"}, {**LINE, "stock_id": None}]
    orders = order_lines(lines, session_external_id=SESSION, transaction="135243", stock_id="NewYork", timestamp=MOMENT)
    shared: dict[str, Any] = {"session_external_id": SESSION, "transaction": "135243", "timestamp": MOMENT}
    expected = [
        Order(product_id=1, quantity=2, price=Decimal("9.90"), stock_id="NewYork", **shared),
        Order(product_id=2, quantity=0.5, price=1, stock_id="Moscow", **shared),
        Order(product_id=1, quantity=2, price=Decimal("9.90"), **shared),
    ]

    assert expected == orders


def test_order_lines_now() -> None:
    """If no timestamp is given, all lines of the order get the same current time."""
    before = utc_now()
    orders = order_lines((LINE for _ in range(100)), session_external_id=SESSION, transaction="1")
    [moment] = {order.timestamp for order in orders}

    assert before <= moment <= utc_now()
    assert [None] * 100 == [order.stock_id for order in orders]


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ({}, "lines[1]", "(missing: 'price', 'product_id', 'quantity')"),
        ({"product_id": 1, "price": 1}, "lines[1]", "(missing: 'quantity')"),
        ({**LINE, "sku": 1}, "lines[1]", "(unknown: 'sku')"),
        ({**LINE, "transaction": "2", 7: 1}, "lines[1]", "(unknown: 'transaction', 7)"),
        ({"price": 1, "quantity": 1, "productId": 1}, "lines[1]", "(unknown: 'productId'; missing: 'product_id')"),
        (1, "lines[1]", "must be a mapping, not int"),
        ("product_id", "lines[1]", "must be a mapping, not str"),
        (["product_id", "quantity", "price"], "lines[1]", "must be a mapping, not list"),
        (None, "lines[1]", "must be a mapping, not NoneType"),
        (Liar(), "lines[1]", "must be a mapping that can be read: it raised RuntimeError"),
        (BrokenMapping(LINE), "lines[1]", "must be a mapping that can be read: it raised KeyError"),
        (FickleMapping(), "lines[1]", "must be a mapping that can be read: it raised LookupError"),
        (EndlessMapping(), "lines[1]", "(unknown: "),
        ({**LINE, "price": -1}, "price", "0 or more"),
        ({**LINE, "quantity": True}, "quantity", "above 0"),
        ({**LINE, "stock_id": ""}, "stock_id", "1-50 characters"),
    ],
    ids=shown,
)
def test_order_lines_refused(line: Any, field: str, said: str) -> None:
    """If a line has an unknown or missing key or a bad value, the error names the line."""
    with pytest.raises(EventValidationError) as caught:
        order_lines([LINE, line], session_external_id=SESSION, transaction="1")

    assert ("order", field) == (caught.value.event, caught.value.field)
    assert said in caught.value.rule


@pytest.mark.parametrize("name", ["none", "int", "true", "moment", "function", "liar", "broken list"])
def test_no_lines_at_all(name: str) -> None:
    """If the lines are not an iterable, for example null, `EventValidationError` is raised."""
    lines = HOSTILE[name]
    with pytest.raises(EventValidationError) as caught:
        order_lines(lines, session_external_id=SESSION, transaction="1")

    assert f"order.lines must be an iterable, not {type(lines).__name__}" == str(caught.value)


def test_a_callers_own_error_is_not_hidden() -> None:
    """If the caller's generator raises an error, that error is raised unchanged."""

    def rows() -> Iterator[dict[str, Any]]:
        yield LINE
        raise ConnectionError("database")

    with pytest.raises(ConnectionError):
        order_lines(rows(), session_external_id=SESSION, transaction="1")


def test_order_lines_with_many_unknown_keys() -> None:
    """If a line has many long unknown keys, the error message is still short."""
    line: dict[str, Any] = {**LINE, **{f"{number}{'x' * 1000}": 1 for number in range(1000)}}
    with pytest.raises(EventValidationError) as caught:
        order_lines([line], session_external_id=SESSION, transaction="1")

    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("lines", [[], (), {}, iter(())])
def test_empty_order(lines: Any) -> None:
    """If an order has no lines, an error is raised, because otherwise the order would get lost unnoticed."""
    with pytest.raises(EventValidationError, match="at least one line"):
        order_lines(lines, session_external_id=SESSION, transaction="1")


@pytest.mark.parametrize(
    ("shared", "field"),
    [
        ({"session_external_id": "a-b"}, "session_external_id"),
        ({"transaction": ""}, "transaction"),
        ({"stock_id": ""}, "stock_id"),
        ({"timestamp": datetime(2018, 9, 15)}, "timestamp"),  # noqa: DTZ001
    ],
)
def test_order_lines_shared_field(shared: dict[str, Any], field: str) -> None:
    """If an argument for all lines is invalid, an error names the argument."""
    with pytest.raises(EventValidationError) as caught:
        order_lines([LINE], **{"session_external_id": SESSION, "transaction": "1", **shared})

    assert field == caught.value.field


# --- new_session_id ---


def test_new_session_id() -> None:
    """If a thousand session ids are created, they are all different and valid."""
    ids = {new_session_id() for _ in range(1000)}
    valid = {View(**fields_of(View, session_external_id=new)).session_external_id for new in ids}

    assert 1000 == len(valid)
