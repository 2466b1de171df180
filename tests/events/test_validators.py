"""The tests check every rule of the contract's field table, for every event that has the field."""

from __future__ import annotations

import enum
import json
import math
import types
from collections import OrderedDict, UserDict, deque
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailrocket_async import (
    CustomEvent,
    EventValidationError,
    GroupView,
    Order,
    Search,
    SetContact,
    View,
    WelcomeSequence,
)
from retailrocket_async._errors import REDACTED
from retailrocket_async._events.validators import MAX_DEPTH, MAX_IDS, PERSONAL, on_wire
from tests.fuzz.draw import EndlessList
from tests.support.ids import shown
from tests.support.strategies import (
    CLASSES,
    CODECS,
    HOSTILE,
    INT64_MAX,
    INT64_MIN,
    MOMENT,
    PROPERTY,
    BrokenList,
    BrokenMapping,
    BrokenZone,
    Daylight,
    Exact,
    Fractional,
    Liar,
    Moment,
    Nonsense,
    Text,
    Whole,
    endless,
    fields_of,
    hostile,
    nested,
)

if TYPE_CHECKING:
    from retailrocket_async._events.models import VisitorEvent


class Shelf(enum.IntEnum):
    """An int that also has a name."""

    TOP = 1


LONE = "\ud800"
NO_TEXT: list[Any] = [b"abc", 1, 1.5, True, ["abc"], {"abc"}, MOMENT, Text("abc")]
NO_NUMBER: list[Any] = ["1", b"1", None, True, [1], 1j, Whole(1), Shelf.TOP, Fractional(1.5), Exact("1.5")]
INFINITE: list[Any] = [
    *(math.nan, math.inf, -math.inf),
    *map(Decimal, ("NaN", "-NaN", "sNaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e999999")),
    *(2**63, 10**400, -(10**400)),
]

IDENTIFIERS: tuple[list[Any], list[Any]] = (
    ["a", "Z", "0", "a" * 50, "60842392e4881c65e6c5e423", "0" * 50],
    ["", "a" * 51, "a-b", "a_b", "a b", " a", "a\n", "\x00", "é", "ж", "٣", "²", "ａ", LONE, *NO_TEXT, None],
)
SHORT_TEXTS: tuple[list[Any], list[Any]] = (
    ["a", " ", "\x00", "a" * 50, "я" * 50, "😀" * 50, "New York", '"', "a\n"],
    ["", "a" * 51, "я" * 51, LONE, "a" + LONE, "\udfff", *NO_TEXT],
)
INT64S: tuple[list[Any], list[Any]] = (
    [0, 1, -1, INT64_MAX, INT64_MIN],
    [INT64_MAX + 1, INT64_MIN - 1, 10**400, 1.0, math.nan, Decimal(1), *NO_NUMBER],
)

JSON_OBJECTS: tuple[list[Any], list[Any]] = (
    [
        *(None, {}, {"": None}, {"a": [True, 1, 1.5, "x", None, {"b": []}]}, {"a": (1, 2)}, {"ключ": "\x00😀"}),
        *(types.MappingProxyType({"a": 1}), OrderedDict(a=1), UserDict(a={"b": 1}), nested(MAX_DEPTH)),
        *({"a": INT64_MAX}, {"a": INT64_MIN}, {"a": 1e308}),
    ],
    [
        *([], [("a", 1)], "{}", 1, True, {"a"}, BrokenMapping(a=1), Liar()),
        *({key: 1} for key in (1, None, True, 1.5, b"a", Text("a"), (), LONE)),
        *({"a": {key: 1}} for key in (1, LONE)),
        *({"a": bad} for bad in (math.nan, math.inf, INT64_MAX + 1, 10**400, LONE, b"a", MOMENT, Decimal(1))),
        *({"a": bad} for bad in ({1}, object(), Text("a"), Whole(1), Fractional(1.5), int, iter([]), Liar())),
        *({"a": [{"b": bad}]} for bad in (math.nan, -math.inf, LONE, Decimal(1))),
        *(nested(MAX_DEPTH + 1), nested(900), endless()),
    ],
)

VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "session_external_id": IDENTIFIERS,
    "contact_external_id": IDENTIFIERS,
    "product_id": INT64S,
    "group_id": INT64S,
    "category_id": INT64S,
    "product_ids": (
        [[1], (1,), [1, 1], [INT64_MIN, INT64_MAX], range(3), deque([1, 2]), [0] * 10_000, range(MAX_IDS)],
        [
            *([], (), None, 1, "12", b"12", bytearray(b"12"), memoryview(b"12"), {1}, {1: 2}, iter([1]), range(0)),
            *(BrokenList([1]), Liar(), range(MAX_IDS + 1), range(10**12), EndlessList()),
            *([bad] for bad in INT64S[1]),
            *([1, bad] for bad in (True, 1.0, "1", INT64_MAX + 1)),
        ],
    ),
    "stock_id": ([None, *SHORT_TEXTS[0]], SHORT_TEXTS[1]),
    "transaction": (SHORT_TEXTS[0], [None, *SHORT_TEXTS[1]]),
    "recom_block_id": (SHORT_TEXTS[0], [None, *SHORT_TEXTS[1]]),
    "impression_content_id": (SHORT_TEXTS[0], [None, *SHORT_TEXTS[1]]),
    "search_phrase": (
        ["a", " ", "\x00", "красное платье", "ドレス", "😀", "x" * 100_000],
        ["", LONE, "a" + LONE, None, *NO_TEXT],
    ),
    "mail_tracking_id": (["a", " ", "5b488f277ecc191c98859541"], ["", LONE, None, *NO_TEXT]),
    "category_path": (["a", "/", "Товары для дома/Кухня/Вилки"], ["", LONE, None, *NO_TEXT]),
    "price": (
        [0, 0.0, -0.0, 1, 1321.43, 5e-324, 1e308, INT64_MAX, *map(Decimal, ("0", "-0", "1321.43", "1e-400", "1e300"))],
        [-1, -0.01, -5e-324, Decimal("-0.01"), Decimal("-1e-400"), *INFINITE, *NO_NUMBER],
    ),
    "quantity": (
        [1, 0.5, 5e-324, 1e308, INT64_MAX, *map(Decimal, ("1", "2.00", "0.001", "1e-300"))],
        [0, 0.0, -0.0, -1, -0.5, *map(Decimal, ("0", "-0", "-1", "1e-400", "-1e-400")), *INFINITE, *NO_NUMBER],
    ),
    "timestamp": (
        [
            MOMENT,
            datetime.min.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
            *(MOMENT.replace(tzinfo=timezone(timedelta(minutes=m))) for m in (180, -1, 345, 1439, -1439)),
            MOMENT.replace(tzinfo=Daylight()),
            Moment(2018, 9, 15, tzinfo=UTC),
        ],
        [
            *(datetime(2018, 9, 15, 15, 53), Moment(2018, 9, 15), date(2018, 9, 15), MOMENT.timetz()),  # noqa: DTZ001
            *(MOMENT.replace(tzinfo=timezone(timedelta(seconds=s))) for s in (1, -1, 59, 3601, 0.5)),
            *(MOMENT.replace(tzinfo=BrokenZone()), Nonsense(2018, 9, 15), Liar()),
            *("2018-09-15T15:53:00+00:00", 1537026780, 1537026780.0, None, timedelta(1)),
        ],
    ),
    "email": (
        [None, "a@b", "ivan@пример.рф", '"a@b"@c.d', "a" * 252 + "@b"],
        ["", "@", "a", "@b", "a@", "a b@c", "a@b\n", "a@\u2028b", "a" * 253 + "@b", f"{LONE}@b", *NO_TEXT],
    ),
    "phone": (
        [None, "+79161234567", "+10", "+123456789012345"],
        [
            *("", "+", "+1", "+0123456", "79161234567", "+7 916 123 45 67", "+7-916", "+79161234567\n", "+٧٩١٦"),
            *("+1234567890123456", 79161234567, LONE, *NO_TEXT),
        ],
    ),
    "custom_data": JSON_OBJECTS,
    "extra": (
        JSON_OBJECTS[0],
        [
            *JSON_OBJECTS[1],
            *({name: 1} for name in ("sessionExternalId", "session_external_id", "SESSIONEXTERNALID", "timestamp")),
        ],
    ),
}
"""For each field, the values that must be accepted and the values that must be refused."""


def _name(value: object) -> str:
    try:
        return shown(value)[:40] if not isinstance(value, type) else value.__name__
    except Exception:  # noqa: BLE001 - some values are made to raise
        return f"<{type(value).__name__}>"


def _cases(verdict: int) -> list[Any]:
    return [
        pytest.param(field, value, id=f"{field}-{_name(value)}")
        for field, verdicts in VALUES.items()
        for value in verdicts[verdict]
    ]


def _having(field: str) -> list[type[VisitorEvent]]:
    return [cls for cls in CLASSES if field in attrs.fields_dict(cls)]


def test_every_field_has_values() -> None:
    """If an event has a field, `VALUES` contains the field."""
    assert VALUES.keys() == set().union(*map(attrs.fields_dict, CLASSES))


@pytest.mark.parametrize(("field", "value"), _cases(0))
def test_accepted(field: str, value: Any) -> None:
    """If a value is valid, every event with the field accepts it, and the event can be encoded and decoded."""
    codec = CODECS["microseconds"]
    for cls in _having(field):
        if value is None and attrs.fields_dict(cls)[field].default is attrs.NOTHING:
            continue
        event = cls(**fields_of(cls, **{field: value}))

        assert event == codec.decode(codec.encode(event), allow_extra=True)


@pytest.mark.parametrize(("field", "value"), _cases(1))
def test_refused(field: str, value: Any) -> None:
    """If a value is invalid, every event with the field raises an error with event, field, rule and value."""
    for cls in _having(field):
        with pytest.raises(EventValidationError) as caught:
            cls(**fields_of(cls, **{field: value}))
        error = caught.value
        message = f"{cls.wire_name}.{error.field} {error.rule}"

        assert (cls.wire_name, field) == (error.event, error.field[: len(field)])
        assert error.rule.startswith("must ")
        if field in PERSONAL:
            assert (message, REDACTED) == (str(error), error.value)
        else:
            assert str(error).startswith(f"{message} (got ")
            assert error.value is not REDACTED
        assert len(str(error)) < 300


def test_personal_fields() -> None:
    """If a field contains personal data, `PERSONAL` contains the field."""
    expected = {"session_external_id", "contact_external_id", "search_phrase", "email", "phone", "custom_data"}
    expected |= {"extra"}

    assert expected == PERSONAL


SECRET = "Ivan Petrov"


@pytest.mark.parametrize("field", sorted(PERSONAL))
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        SECRET * 100_000,
        LONE + SECRET,
        SECRET.encode(),
        [SECRET],
        Text(SECRET),
        {SECRET: Decimal(1)},
        {SECRET: {SECRET: math.nan}},
        {SECRET: [{SECRET: LONE}]},
        {LONE + SECRET: 1},
    ],
    ids=_name,
)
def test_personal_data_is_in_no_error(field: str, value: Any) -> None:
    """If a personal field is invalid, the error's text, repr, arguments and attributes do not contain the value."""
    if field == "search_phrase" and value in (SECRET, SECRET * 100_000) and type(value) is str:
        value = LONE + SECRET
    [cls] = [cls for cls in (Search, SetContact) if field in attrs.fields_dict(cls)][-1:]
    with pytest.raises(EventValidationError) as caught:
        cls(**fields_of(cls, **{field: value}))
    error = caught.value

    assert SECRET not in f"{error} {error!r} {error.args} {vars(error)} {error.__cause__!r} {error.__context__!r}"


@pytest.mark.parametrize(
    ("cls", "field", "value", "expected"),
    [
        (View, "session_external_id", "a-b", "view.session_external_id must be a str of 1-50 ASCII letters and digits"),
        (
            View,
            "session_external_id",
            7,
            "view.session_external_id must be a str of 1-50 ASCII letters and digits, not int",
        ),
        (
            View,
            "session_external_id",
            None,
            "view.session_external_id must be a str of 1-50 ASCII letters and digits, not NoneType",
        ),
        (View, "product_id", "1", "view.product_id must be an int of at most 64 bits; convert it with int() (got '1')"),
        (View, "product_id", True, "view.product_id must be an int of at most 64 bits, not bool (got True)"),
        (View, "product_id", 2**64, f"view.product_id must be an int of at most 64 bits (got {2**64})"),
        (View, "product_id", 10**400, "view.product_id must be an int of at most 64 bits (got an int of 1329 bits)"),
        (View, "stock_id", "", "view.stock_id must be None or a str of 1-50 characters (got '')"),
        (
            View,
            "stock_id",
            Text("a"),
            "view.stock_id must be None or a str of 1-50 characters, not Text (got 'a')",
        ),
        (
            GroupView,
            "product_ids",
            [7, "8"],
            "groupView.product_ids[1] must be an int of at most 64 bits; convert it with int() (got '8')",
        ),
        (GroupView, "product_ids", [], "groupView.product_ids must be a sequence of at least one int (got ())"),
        (Order, "price", -1, "order.price must be a finite int, float or Decimal, 0 or more (got -1)"),
        (Order, "quantity", 0, "order.quantity must be a finite int, float or Decimal above 0 (got 0)"),
        (Search, "search_phrase", "", "search.search_phrase must be a str that is not empty"),
        (
            SetContact,
            "phone",
            "123",
            "setContact.phone must be None or a phone number in E.164 form, e.g. +79161234567",
        ),
        (WelcomeSequence, "email", None, "welcomeSequence.email must be an e-mail address, not NoneType"),
        (SetContact, "email", "nobody", "setContact.email must be None or an e-mail address"),
        (
            SetContact,
            "custom_data",
            {"a": [1, {"b": math.nan}]},
            "setContact.custom_data.*[1].* must be finite: JSON has no NaN and no infinity",
        ),
        (
            SetContact,
            "custom_data",
            BrokenMapping(a=1),
            "setContact.custom_data must be a mapping that can be read: it raised KeyError",
        ),
    ],
    ids=_name,
)
def test_message(cls: type[VisitorEvent], field: str, value: Any, expected: str) -> None:
    """If a field is invalid, the message names the event, the field and the rule."""
    with pytest.raises(EventValidationError) as caught:
        cls(**fields_of(cls, **{field: value}))

    assert expected == str(caught.value)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "int"])
def test_brief(name: str) -> None:
    """If a value is invalid, the error's message is short, and its `value` is the value itself."""
    value = HOSTILE[name]
    with pytest.raises(EventValidationError) as caught:
        View(**fields_of(View, product_id=value))

    assert len(str(caught.value)) < 300
    assert value is caught.value.value


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_value(name: str) -> None:
    """If a field has any value, the constructor raises `EventValidationError` or the event can be encoded."""
    for cls in CLASSES:
        for field in attrs.fields_dict(cls):
            _construct(cls, fields_of(cls, **{field: HOSTILE[name]}))


@given(st.data())
@PROPERTY
def test_arbitrary_values(data: st.DataObject) -> None:
    """If all fields have any values, the constructor raises `EventValidationError` or the event can be encoded."""
    cls = data.draw(st.sampled_from(CLASSES))
    fields = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(attrs.fields_dict(cls), hostile())))
    _construct(cls, fields_of(cls, **fields))


@given(hostile(), hostile())
@PROPERTY
def test_arbitrary_custom_event(name: Any, fields: Any) -> None:
    """If a custom event gets any name and fields, `EventValidationError` is raised, or the event can be encoded."""
    _construct(CustomEvent, {"name": name, "fields": {}})
    _construct(CustomEvent, {"name": "newEvent", "fields": fields})


def _construct(cls: type[Any], fields: dict[str, Any]) -> None:
    codec = CODECS["microseconds"]
    try:
        event = cls(**fields)
    except EventValidationError:
        return

    assert event == codec.decode(codec.encode(event), allow_custom=True, allow_extra=True)


@pytest.mark.parametrize("cls", CLASSES)
def test_keywords(cls: type[Any]) -> None:
    """If an argument is unknown, missing or positional, the constructor raises `TypeError`."""
    fields = fields_of(cls)
    with pytest.raises(TypeError, match="unexpected keyword"):
        cls(**fields, productId=1)
    with pytest.raises(TypeError, match="missing"):
        cls()
    with pytest.raises(TypeError, match="positional"):
        cls(*fields.values())


@given(st.integers() | st.floats() | st.decimals(allow_nan=True, allow_infinity=True))
@example(Decimal("sNaN"))
@example(-0.0)
@PROPERTY
def test_on_wire(value: float | Decimal) -> None:
    """If a number is finite, it is sent as the nearest double, and as an int if it is whole."""
    number = on_wire(value)
    assert type(number) in (int, float)
    if not math.isfinite(number):
        return
    if type(value) is int:
        assert value == number
    else:
        assert float(value) == number
        assert type(number) is int or number % 1 or abs(number) > 2**53


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("2.00"), 2),
        (2.0, 2),
        (-0.0, 0),
        (Decimal("1321.43"), 1321.43),
        (0.1, 0.1),
        (2**53, 2**53),
        (Decimal(2**53), 2**53),
        (2.0**54, 2.0**54),
        (INT64_MAX, INT64_MAX),
        (5e-324, 5e-324),
    ],
)
def test_number_in_json(value: float | Decimal, expected: float) -> None:
    """If an amount is whole, it is sent as an integer, because an early API document requires it for `quantity`."""
    sent = json.loads(CODECS["seconds"].encode_bare(Order(**fields_of(Order, price=value))))["price"]

    assert (expected, type(expected)) == (sent, type(sent))
