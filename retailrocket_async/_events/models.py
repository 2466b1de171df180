"""The events of a shop: one frozen class for each event of the API, checked at construction.

Every class is one event of the API document, section "Events". The fields have snake_case names and are checked by the
document's rules. If a value breaks a rule, the constructor raises an `EventValidationError` that names the event, the
field, the rule and, unless the value is personal data, the value.

`timestamp` is the time at which the visitor acted, an aware `datetime`; default: now, in UTC, at construction. The time
at which the server gets the event would be wrong, because an event may wait in a buffer.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, ClassVar, cast

import attrs

from retailrocket_async._errors import EventValidationError, brief_names
from retailrocket_async._events.validators import (
    MAX_VALUES,
    Json,
    Number,
    email,
    fail,
    fixed_moment,
    frozen_object,
    id_tuple,
    identifier,
    int64,
    int64s,
    json_object,
    moment,
    on_wire,
    optional_json_object,
    optional_short_text,
    phone,
    phrase,
    price,
    quantity,
    short_text,
)
from retailrocket_async._interrupt import is_interrupt


def utc_now() -> datetime:
    """Return the current time as an aware datetime in UTC: the default of every `timestamp`."""
    return datetime.now(UTC)


@attrs.frozen(kw_only=True)
class Event:
    """The base class of all events; construct an object of a subclass, for example `View`."""

    wire_name: ClassVar[str] = ""
    # Whether a `visitorEvents` batch may hold the event. Otherwise the event is sent to its own endpoint.
    batchable: ClassVar[bool] = True

    @property
    def event_name(self) -> str:
        """The event's name as the API spells it, e.g. ``"addToBasket"``."""
        return self.wire_name


@attrs.frozen(kw_only=True)
class VisitorEvent(Event):
    """An event of one visitor at one moment: the base of the twelve documented events.

    Attributes:
        session_external_id: the visitor's device or browser, 1-50 ASCII letters and digits; see `new_session_id`.
        timestamp: when the visitor acted, an aware datetime; default now, in UTC. The time zone is replaced by a
            fixed offset. By default the client sends whole seconds.
    """

    session_external_id: str = attrs.field(validator=identifier)
    timestamp: datetime = attrs.field(factory=utc_now, converter=fixed_moment, validator=moment)


@attrs.frozen(kw_only=True)
class StockEvent(VisitorEvent):
    """A visitor's event that may belong to one stock or region of the product feed.

    Attributes:
        stock_id: the stock or region of the product feed, 1-50 characters; default None.
    """

    stock_id: str | None = attrs.field(default=None, validator=optional_short_text)


@attrs.frozen(kw_only=True)
class View(StockEvent):
    """A product page is viewed (`POST view`).

    Attributes:
        product_id: the product's id in the feed, int64.
    """

    wire_name: ClassVar[str] = "view"
    product_id: int = attrs.field(validator=int64)


@attrs.frozen(kw_only=True)
class GroupView(StockEvent):
    """A page of a product group is viewed (`POST groupView`).

    Attributes:
        group_id: the group's id in the feed, int64.
        product_ids: the ids of the group's products, 1 to 100,000, int64 each; any sequence, stored as a tuple.
    """

    wire_name: ClassVar[str] = "groupView"
    group_id: int = attrs.field(validator=int64)
    product_ids: tuple[int, ...] = attrs.field(converter=id_tuple, validator=int64s)


@attrs.frozen(kw_only=True)
class AddToBasket(StockEvent):
    """A product is put in the basket (`POST addToBasket`).

    Attributes:
        product_id: the product's id in the feed, int64.
    """

    wire_name: ClassVar[str] = "addToBasket"
    product_id: int = attrs.field(validator=int64)


@attrs.frozen(kw_only=True)
class Order(StockEvent):
    """A product is bought (`POST order`): one event per line of the order; see `order_lines`.

    Attributes:
        product_id: the product's id in the feed, int64.
        quantity: pieces (or kilograms, metres, ...) bought, above 0; int, float or Decimal.
        price: the price of **one** unit after discounts, 0 or more; int, float or Decimal. Two orders are compared by
            the JSON numbers that are sent, so ``Decimal("9.90")`` equals ``9.9``.
        transaction: the order's number in the shop, 1-50 characters, the same for all lines of one order.
    """

    wire_name: ClassVar[str] = "order"
    product_id: int = attrs.field(validator=int64)
    quantity: Number = attrs.field(validator=quantity, eq=on_wire)
    price: Number = attrs.field(validator=price, eq=on_wire)
    transaction: str = attrs.field(validator=short_text)


@attrs.frozen(kw_only=True)
class CategoryView(VisitorEvent):
    """A category page is viewed (`POST categoryView`).

    Attributes:
        category_id: the category's id in the feed, int64.
    """

    wire_name: ClassVar[str] = "categoryView"
    category_id: int = attrs.field(validator=int64)


@attrs.frozen(kw_only=True)
class Search(StockEvent):
    """A search phrase is entered (`POST search`).

    Attributes:
        search_phrase: what the visitor typed, not empty, in any language.
    """

    wire_name: ClassVar[str] = "search"
    search_phrase: str = attrs.field(validator=phrase)


@attrs.frozen(kw_only=True)
class SetContact(StockEvent):
    """A visitor's contact becomes known, at login or checkout (`POST setContact`).

    Attributes:
        contact_external_id: the contact's id in the shop, 1-50 ASCII letters and digits.
        email: e-mail address; default None.
        phone: in E.164 form, e.g. ``"+79161234567"``; default None.
        custom_data: a JSON object with string keys, at most 32 levels deep and 5,000 values; copied at construction;
            default None.
    """

    wire_name: ClassVar[str] = "setContact"
    contact_external_id: str = attrs.field(validator=identifier)
    email: str | None = attrs.field(default=None, validator=email)
    phone: str | None = attrs.field(default=None, validator=phone)
    # A dict has no hash, so the hash of an event ignores this field. Equal events still have equal hashes.
    custom_data: dict[str, Json] | None = attrs.field(
        default=None, converter=frozen_object, validator=optional_json_object, hash=False
    )


@attrs.frozen(kw_only=True)
class RecomBlockViewed(VisitorEvent):
    """A block of recommendations is shown (`POST recomBlockViewed`).

    Attributes:
        recom_block_id: the block's id, 1-50 characters.
    """

    wire_name: ClassVar[str] = "recomBlockViewed"
    recom_block_id: str = attrs.field(validator=short_text)


@attrs.frozen(kw_only=True)
class RecomTap(StockEvent):
    """A recommended product is clicked (`POST recomTap`).

    Attributes:
        product_id: the product's id in the feed, int64.
        recom_block_id: the block's id, 1-50 characters.
    """

    wire_name: ClassVar[str] = "recomTap"
    product_id: int = attrs.field(validator=int64)
    recom_block_id: str = attrs.field(validator=short_text)


@attrs.frozen(kw_only=True)
class RecomAddToBasket(StockEvent):
    """A product is put in the basket from a block of recommendations (`POST recomAddToBasket`).

    Attributes:
        product_id: the product's id in the feed, int64.
        recom_block_id: the block's id, 1-50 characters.
    """

    wire_name: ClassVar[str] = "recomAddToBasket"
    product_id: int = attrs.field(validator=int64)
    recom_block_id: str = attrs.field(validator=short_text)


@attrs.frozen(kw_only=True)
class ImpressionContentViewed(VisitorEvent):
    """Sponsored content is shown (`POST impressionContentViewed`).

    Attributes:
        impression_content_id: the content's id, 1-50 characters.
    """

    wire_name: ClassVar[str] = "impressionContentViewed"
    impression_content_id: str = attrs.field(validator=short_text)


@attrs.frozen(kw_only=True)
class ImpressionContentClicked(VisitorEvent):
    """Sponsored content is clicked (`POST impressionContentClicked`).

    Attributes:
        impression_content_id: the content's id, 1-50 characters.
    """

    wire_name: ClassVar[str] = "impressionContentClicked"
    impression_content_id: str = attrs.field(validator=short_text)


EVENT_TYPES: dict[str, type[VisitorEvent]] = {
    cls.wire_name: cls
    for cls in (
        View,
        GroupView,
        AddToBasket,
        Order,
        CategoryView,
        Search,
        SetContact,
        RecomBlockViewed,
        RecomTap,
        RecomAddToBasket,
        ImpressionContentViewed,
        ImpressionContentClicked,
    )
}
"""The documented event classes by the event's name in the API."""

UNBATCHABLE: frozenset[str] = frozenset(name for name, cls in EVENT_TYPES.items() if not cls.batchable)
"""Names of the events that no `visitorEvents` batch may hold."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,49}", re.ASCII)


def _custom_name(event: "CustomEvent", field: "attrs.Attribute[str]", value: str) -> None:
    if type(value) is not str or not _NAME.fullmatch(value):
        fail(event, field.name, "must be 1-50 ASCII letters and digits, a letter first", value)
    if value in EVENT_TYPES:
        fail(event, field.name, f"is a documented event: construct {EVENT_TYPES[value].__name__} instead", value)
    if value == "visitorEvents":
        fail(event, field.name, "is the batch endpoint, not an event", value)


@attrs.frozen(kw_only=True)
class CustomEvent(Event):
    """An event of the API that this package has no class for.

    The package checks only the name, and that the fields are JSON.

    Attributes:
        name: the event's name as the API spells it: 1-50 ASCII letters and digits, a letter first; not the
            name of a documented event.
        fields: the event's JSON object as it is sent, with the field names of the API and the same limits as
            `custom_data`; copied at construction. No timestamp is added.
    """

    name: str = attrs.field(validator=_custom_name)
    fields: dict[str, Json] = attrs.field(converter=frozen_object, validator=json_object, hash=False)

    @property
    def event_name(self) -> str:
        """The event's name as the API spells it."""
        # The error about a wrong `name` reads this property too, so `name` may be of any type here.
        return self.name if type(self.name) is str and _NAME.fullmatch(self.name) else "CustomEvent"


def order_lines(
    lines: Iterable[Mapping[str, Any]],
    *,
    session_external_id: str,
    transaction: str,
    stock_id: str | None = None,
    timestamp: datetime | None = None,
) -> list[Order]:
    """Return one `Order` per line of a basket, all with the same `transaction` and `timestamp`.

    Args:
        lines: one mapping per line with the keys ``product_id``, ``quantity``, ``price`` and, if the line's stock
            differs from the order's stock, ``stock_id``.
        session_external_id: the visitor, as in every event.
        transaction: the order's number in the shop, 1-50 characters.
        stock_id: the stock of lines without a ``stock_id``; default None.
        timestamp: when the order was placed, an aware datetime; default now, in UTC.

    Raises:
        EventValidationError: a line breaks a rule, has an unknown key or lacks a required key; or there is no line.
    """
    moment_of_order = timestamp if timestamp is not None else utc_now()
    orders: list[Order] = []
    for position, given in enumerate(_each(lines)):
        line = _line(given, f"lines[{position}]")
        unknown = line.keys() - _LINE_KEYS
        missing = _LINE_KEYS - {"stock_id"} - line.keys()
        if unknown or missing:
            keys = [f"unknown: {brief_names(unknown)}"] * bool(unknown)
            keys += [f"missing: {brief_names(missing)}"] * bool(missing)
            rule = f"must have product_id, quantity, price, perhaps stock_id, and no other key ({'; '.join(keys)})"
            raise EventValidationError("order", f"lines[{position}]", rule)
        orders.append(
            Order(
                session_external_id=session_external_id,
                product_id=line["product_id"],
                quantity=line["quantity"],
                price=line["price"],
                transaction=transaction,
                stock_id=line.get("stock_id", stock_id),
                timestamp=moment_of_order,
            )
        )
    if not orders:
        raise EventValidationError("order", "lines", "must hold at least one line")
    return orders


_LINE_KEYS = frozenset({"product_id", "quantity", "price", "stock_id"})


def _each(lines: Iterable[object]) -> Iterator[object]:
    try:
        return iter(lines)
    except BaseException as error:
        # A basket comes from a visitor's page, so `lines` may be None, or raise any error.
        if is_interrupt(error):
            raise
        raise EventValidationError("order", "lines", f"must be an iterable, not {type(lines).__name__}") from None


def _line(given: object, place: str) -> dict[Any, Any]:
    """Return a copy of a line, because a caller's mapping may raise, be endless, or change between two reads."""
    try:
        if isinstance(given, Mapping):
            members = cast("Mapping[object, object]", given)
            return dict(islice(members.items(), MAX_VALUES))
    except BaseException as error:  # a caller's mapping may raise anything
        if is_interrupt(error):
            raise
        rule = f"must be a mapping that can be read: it raised {type(error).__name__}"
        raise EventValidationError("order", place, rule) from None
    raise EventValidationError("order", place, f"must be a mapping, not {type(given).__name__}")


def new_session_id() -> str:
    """Return a fresh `session_external_id`: a random GUID without hyphens, 32 letters and digits.

    Store the id on the device or in the browser, for example in a cookie that lasts a year. The id must stay the same
    when the visitor logs in or out.
    Source: API document, "Fields", `sessionExternalId`.
    """
    return uuid.uuid4().hex
