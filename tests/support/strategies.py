"""Hypothesis strategies and sample values that all tests of events share.

There is one strategy for each event class, `events()` for all documented events, `events_with_extra()`, and
`custom_events()`. `json_values()`
and `json_objects()` make JSON values that constructors accept. `HOSTILE` and `hostile()` have values that may break the
validation of a field.
"""

from __future__ import annotations

import math
import string
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from retailrocket_async import (
    EVENT_TYPES,
    AddToBasket,
    CategoryView,
    CategoryViewByCategoryPath,
    Codec,
    CustomEvent,
    EmailClick,
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
from retailrocket_async._events.codec import TimestampPrecision
from tests.support.effort import most

if TYPE_CHECKING:
    from collections.abc import Iterator

    from retailrocket_async._events.models import VisitorEvent

PROPERTY = settings(
    max_examples=most(100),
    deadline=None,  # a property is a claim about values, not about the speed of the machine
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""The Hypothesis settings of every test that uses strategies."""

CODECS = {precision: Codec(precision) for precision in get_args(TimestampPrecision)}
"""A codec for each precision. They are shared, because making a codec takes as long as encoding thousands of events."""

SESSION = "60842392e4881c65e6c5e423"
MOMENT = datetime(2018, 9, 15, 15, 53, tzinfo=UTC)
INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
LETTERS_AND_DIGITS = string.ascii_letters + string.digits

MINIMAL: dict[type[VisitorEvent], dict[str, Any]] = {
    View: {"product_id": 123456},
    GroupView: {"group_id": 654321, "product_ids": (123456, 234567, 345678)},
    AddToBasket: {"product_id": 123456},
    Order: {"product_id": 123456, "quantity": 1, "price": Decimal("1321.43"), "transaction": "135243"},
    CategoryView: {"category_id": 42},
    Search: {"search_phrase": "платье"},
    SetContact: {"contact_external_id": "contact1"},
    RecomBlockViewed: {"recom_block_id": "block"},
    RecomTap: {"product_id": 123456, "recom_block_id": "block"},
    RecomAddToBasket: {"product_id": 123456, "recom_block_id": "block"},
    ImpressionContentViewed: {"impression_content_id": "banner"},
    ImpressionContentClicked: {"impression_content_id": "banner"},
    EmailClick: {"mail_tracking_id": "5b488f277ecc191c98859541"},
    WelcomeSequence: {"email": "a@b.ru"},
    CategoryViewByCategoryPath: {"category_path": "Товары для дома/Кухня/Вилки"},
}
"""The required fields of every event class with valid values, except `session_external_id`."""

CLASSES = list(EVENT_TYPES.values())


def fields_of(cls: type[VisitorEvent], **fields: Any) -> dict[str, Any]:
    """Return the required fields of `cls` and a timestamp, with `fields` added or changed."""
    return {"session_external_id": SESSION, "timestamp": MOMENT, **MINIMAL[cls], **fields}


# --- fields ---


def identifiers() -> st.SearchStrategy[str]:
    """Texts of 1-50 ASCII letters and digits."""
    return st.text(LETTERS_AND_DIGITS, min_size=1, max_size=50)


def texts(min_size: int = 0, max_size: int | None = None) -> st.SearchStrategy[str]:
    """Any text that can be encoded as UTF-8."""
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=min_size, max_size=max_size)


def short_texts() -> st.SearchStrategy[str]:
    """Texts of 1-50 characters."""
    return texts(1, 50)


def int64s() -> st.SearchStrategy[int]:
    """Signed 64-bit integers; the smallest and the largest value are frequent."""
    return st.integers(INT64_MIN, INT64_MAX) | st.sampled_from([INT64_MIN, INT64_MAX, 2**53, 2**53 + 1])


def prices() -> st.SearchStrategy[float | Decimal]:
    """Numbers of 0 or more: int, float and Decimal."""
    return (
        st.integers(0, INT64_MAX)
        | st.floats(min_value=0, allow_nan=False, allow_infinity=False)
        | st.decimals(min_value=0, max_value=10**30, allow_nan=False, allow_infinity=False)
        | st.decimals(min_value=0, max_value=10**6, places=2)
    )


def quantities() -> st.SearchStrategy[float | Decimal]:
    """Numbers above 0: int, float and Decimal."""
    return (
        st.integers(1, INT64_MAX)
        | st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
        | st.decimals(min_value=Decimal("1e-300"), max_value=10**30, allow_nan=False, allow_infinity=False)
    )


class Daylight(tzinfo):
    """A time zone in which every hour is repeated, as when daylight saving ends: UTC+2, or UTC+1 if `fold` is set."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        """Return the offset that `fold` chooses."""
        return timedelta(hours=1 if moment is not None and moment.fold else 2)

    def dst(self, moment: datetime | None) -> timedelta:
        """Return the part of the offset that is daylight saving."""
        return self.utcoffset(moment) - timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> str:
        """Return the name of the time zone."""
        return "Daylight"


class Moment(datetime):
    """A subclass of datetime; pandas, pendulum and freezegun have such subclasses."""


def moments() -> st.SearchStrategy[datetime]:
    """Datetimes with a time zone, of every year, offset and precision."""
    offsets = st.integers(-(24 * 60 - 1), 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    zones = st.just(UTC) | offsets | st.just(Daylight())
    plain = st.datetimes(timezones=zones)
    return plain | plain.map(lambda m: m.replace(fold=1)) | plain.map(lambda m: Moment.combine(m.date(), m.timetz()))


def emails() -> st.SearchStrategy[str]:
    """Texts with one "@" and at least one character on both sides."""
    part = st.text(
        st.characters(exclude_categories=["Cs", "Z", "Cc"], exclude_characters="@"), min_size=1, max_size=100
    )
    return st.emails() | st.builds("{}@{}".format, part, part)


def phones() -> st.SearchStrategy[str]:
    """Numbers in E.164 form."""
    return st.from_regex(r"\+[1-9][0-9]{1,14}", fullmatch=True)


def json_scalars() -> st.SearchStrategy[Any]:
    """JSON values other than arrays and objects, as `custom_data` accepts them."""
    return (
        st.none()
        | st.booleans()
        | int64s()
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts(max_size=20)
        | st.sampled_from(["\x00", "😀", '"', "\\", "\u2028"])
    )


def json_values() -> st.SearchStrategy[Any]:
    """JSON values of any type, also nested, as `custom_data` accepts them."""
    return st.recursive(
        json_scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(max_size=10), inner, max_size=4),
        max_leaves=12,
    )


def json_objects() -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects, also nested, as `custom_data` accepts them."""
    return st.dictionaries(texts(max_size=10), json_values(), max_size=4)


# --- events ---


def extras() -> st.SearchStrategy[dict[str, Any]]:
    """Fields under names that no event documents, as `extra` accepts them."""
    return json_objects().filter(lambda fields: not any(_folded(name) in DOCUMENTED for name in fields))


def _folded(name: str) -> str:
    return name.replace("_", "").casefold()


DOCUMENTED = {
    _folded(field.name) for cls in EVENT_TYPES.values() for field in attrs.fields(cls) if field.name != "extra"
}
"""The names of all documented fields without underscores, in lower case."""


def _visit(**fields: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return {"session_external_id": identifiers(), "timestamp": moments(), **fields}


def _stock(**fields: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return _visit(stock_id=st.none() | short_texts(), **fields)


def views() -> st.SearchStrategy[View]:
    """Valid `View` events."""
    return st.builds(View, **_stock(product_id=int64s()))


def group_views() -> st.SearchStrategy[GroupView]:
    """Valid `GroupView` events."""
    return st.builds(GroupView, **_stock(group_id=int64s(), product_ids=st.lists(int64s(), min_size=1, max_size=20)))


def add_to_baskets() -> st.SearchStrategy[AddToBasket]:
    """Valid `AddToBasket` events."""
    return st.builds(AddToBasket, **_stock(product_id=int64s()))


def orders() -> st.SearchStrategy[Order]:
    """Valid `Order` events."""
    return st.builds(
        Order, **_stock(product_id=int64s(), quantity=quantities(), price=prices(), transaction=short_texts())
    )


def category_views() -> st.SearchStrategy[CategoryView]:
    """Valid `CategoryView` events."""
    return st.builds(CategoryView, **_visit(category_id=int64s()))


def searches() -> st.SearchStrategy[Search]:
    """Valid `Search` events."""
    return st.builds(Search, **_stock(search_phrase=texts(1)))


def set_contacts() -> st.SearchStrategy[SetContact]:
    """Valid `SetContact` events."""
    return st.builds(
        SetContact,
        **_stock(
            contact_external_id=identifiers(),
            email=st.none() | emails(),
            phone=st.none() | phones(),
            custom_data=st.none() | json_objects(),
        ),
    )


def recom_blocks_viewed() -> st.SearchStrategy[RecomBlockViewed]:
    """Valid `RecomBlockViewed` events."""
    return st.builds(RecomBlockViewed, **_visit(recom_block_id=short_texts()))


def recom_taps() -> st.SearchStrategy[RecomTap]:
    """Valid `RecomTap` events."""
    return st.builds(RecomTap, **_stock(product_id=int64s(), recom_block_id=short_texts()))


def recom_adds_to_basket() -> st.SearchStrategy[RecomAddToBasket]:
    """Valid `RecomAddToBasket` events."""
    return st.builds(RecomAddToBasket, **_stock(product_id=int64s(), recom_block_id=short_texts()))


def impressions_viewed() -> st.SearchStrategy[ImpressionContentViewed]:
    """Valid `ImpressionContentViewed` events."""
    return st.builds(ImpressionContentViewed, **_visit(impression_content_id=short_texts()))


def impressions_clicked() -> st.SearchStrategy[ImpressionContentClicked]:
    """Valid `ImpressionContentClicked` events."""
    return st.builds(ImpressionContentClicked, **_visit(impression_content_id=short_texts()))


def email_clicks() -> st.SearchStrategy[EmailClick]:
    """Valid `EmailClick` events."""
    return st.builds(EmailClick, **_visit(mail_tracking_id=texts(1), custom_data=st.none() | json_objects()))


def welcome_sequences() -> st.SearchStrategy[WelcomeSequence]:
    """Valid `WelcomeSequence` events."""
    return st.builds(WelcomeSequence, **_visit(email=emails()))


def category_path_views() -> st.SearchStrategy[CategoryViewByCategoryPath]:
    """Valid `CategoryViewByCategoryPath` events."""
    return st.builds(CategoryViewByCategoryPath, **_visit(category_path=texts(1)))


BY_CLASS: dict[type[VisitorEvent], st.SearchStrategy[Any]] = {
    View: views(),
    GroupView: group_views(),
    AddToBasket: add_to_baskets(),
    Order: orders(),
    CategoryView: category_views(),
    Search: searches(),
    SetContact: set_contacts(),
    RecomBlockViewed: recom_blocks_viewed(),
    RecomTap: recom_taps(),
    RecomAddToBasket: recom_adds_to_basket(),
    ImpressionContentViewed: impressions_viewed(),
    ImpressionContentClicked: impressions_clicked(),
    EmailClick: email_clicks(),
    WelcomeSequence: welcome_sequences(),
    CategoryViewByCategoryPath: category_path_views(),
}
"""The strategy of every documented event."""


def events() -> st.SearchStrategy[VisitorEvent]:
    """Any documented event."""
    return st.one_of(*BY_CLASS.values())


def events_with_extra() -> st.SearchStrategy[VisitorEvent]:
    """Any documented event with fields that are not documented."""
    return st.builds(lambda event, extra: attrs.evolve(event, extra=extra), events(), extras().filter(bool))


def custom_events() -> st.SearchStrategy[CustomEvent]:
    """Valid `CustomEvent` events."""
    names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,49}", fullmatch=True)
    free = names.filter(lambda name: name not in EVENT_TYPES and name != "visitorEvents")
    return st.builds(CustomEvent, name=free, fields=json_objects())


# --- input from outside ---


def wire_values() -> st.SearchStrategy[Any]:
    """Any value that a JSON parser, even a lax one, may return; the values need not be valid for any field."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=60)
        | st.sampled_from([2**63, 10**400, math.inf, "\ud800", "\x00", "1", "2018-09-15T15:53:00+00:00"])
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=12,
    )


class Text(str):
    """A subclass of str, like Django's SafeString and numpy's str_."""

    __slots__ = ()


class Whole(int):
    """A subclass of int, like the class of an IntEnum's members."""


class Fractional(float):
    """A subclass of float, like numpy's float64."""


class Exact(Decimal):
    """A subclass of Decimal."""


class Mute:
    """An object whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Liar:
    """An object whose attribute `__class__` raises."""

    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no class")


class BrokenMapping(dict[str, Any]):
    """A mapping whose method `items` raises."""

    def items(self) -> NoReturn:
        """Raise a KeyError."""
        raise KeyError("no items")


class BrokenList(list[Any]):
    """A list whose iteration raises."""

    def __iter__(self) -> Iterator[Any]:
        raise IndexError("no items")


class BrokenZone(tzinfo):
    """A time zone whose methods all raise."""

    def utcoffset(self, moment: datetime | None) -> NoReturn:
        """Raise a RuntimeError."""
        raise RuntimeError("no offset")

    dst = tzname = utcoffset


class FadingZone(tzinfo):
    """A time zone that returns its offset once, and raises on every later call."""

    asked = False

    def utcoffset(self, moment: datetime | None) -> timedelta:
        """Return three hours on the first call; raise on every later call."""
        if self.asked:
            raise RuntimeError("asked before")
        self.asked = True
        return timedelta(hours=3)

    def dst(self, moment: datetime | None) -> NoReturn:
        """Raise a RuntimeError."""
        raise RuntimeError("no daylight saving")

    tzname = dst


class Nonsense(datetime):
    """A datetime whose offset is a text."""

    def utcoffset(self) -> Any:
        """Return a text instead of an offset."""
        return "tomorrow"


def named(name: str) -> object:
    """Return an object of an empty class called `name`."""
    return type(name, (), {})()


def endless() -> dict[str, Any]:
    """Return a dict that contains itself."""
    circle: dict[str, Any] = {}
    circle["self"] = circle
    return circle


def nested(levels: int) -> dict[str, Any]:
    """Return a dict that is nested `levels` deep, with dicts and lists in turn."""
    value: Any = 1
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


HOSTILE: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": 1,
    "int of 64 bits and one": 2**63,
    "int of a million bits": 2**1_000_000,
    "subclass of int": Whole(1),
    "float": 1.5,
    "nan": math.nan,
    "infinity": math.inf,
    "subclass of float": Fractional(1.5),
    "signalling nan": Decimal("sNaN"),
    "huge decimal": Decimal("1e999999"),
    "long decimal": Decimal("9" * 100_000),
    "subclass of Decimal": Exact("1.5"),
    "fraction": Fraction(1, 3),
    "complex": 1j,
    "empty text": "",
    "text": "1",
    "subclass of str": Text("abc"),
    "lone surrogate": "\ud800",
    "nul": "\x00",
    "10 MB of text": "x" * 10_000_000,
    "bytes": b"abc",
    "1 MB of bytes": bytes(1_000_000),
    "bytearray": bytearray(b"abc"),
    "list": [1, 2],
    "broken list": BrokenList([1]),
    "list of long texts": [["x" * 1_000] * 1_000] * 10,
    "dict": {"a": 1},
    "broken mapping": BrokenMapping(a=1),
    "dict that holds itself": endless(),
    "dict of 500 levels": nested(500),
    "dict without a string key": {1: 1},
    "set": {1},
    "generator": (number for number in (1,)),
    "naive moment": datetime(2018, 9, 15),  # noqa: DTZ001
    "moment": MOMENT,
    "broken zone": datetime(2018, 9, 15, tzinfo=BrokenZone()),
    "nonsense moment": Nonsense(2018, 9, 15),
    "mute": Mute(),
    "list of mutes": [Mute()],
    "liar": Liar(),
    "class": int,
    "function": nested,
    **{f"an object of a class named {name}": named(name) for name in ("int", "str", "list", "dict", "array")},
}
"""Unusual values by name. A constructor must accept each of them or refuse it with an `EventValidationError`."""


def hostile() -> st.SearchStrategy[Any]:
    """The values of `HOSTILE`, except one that Hypothesis cannot handle, and the values of `wire_values`."""
    return st.sampled_from([name for name in HOSTILE if name != "liar"]).map(HOSTILE.__getitem__) | wire_values()
