"""The events of a shop: one frozen class for each event of the API, checked at construction.

Every class is one event of the API document, section "Events". The fields have snake_case names and are checked by the
document's rules. If a value breaks a rule, the constructor raises an `EventValidationError` that names the event, the
field, the rule and, unless the value is personal data, the value.

`timestamp` is the time at which the visitor acted, an aware `datetime`; default: now, in UTC, at construction. The time
at which the server gets the event would be wrong, because an event may wait in a buffer.
"""

import re
import uuid
from datetime import UTC, datetime
from typing import ClassVar

import attrs

from retailrocket_async._events.validators import (
    Json,
    Number,
    email,
    fail,
    fixed_moment,
    frozen_extra,
    frozen_object,
    id_tuple,
    identifier,
    int64,
    int64s,
    json_object,
    moment,
    on_wire,
    optional_email,
    optional_json_object,
    optional_short_text,
    phone,
    phrase,
    price,
    quantity,
    short_text,
    undocumented,
)


def utc_now() -> datetime:
    """Return the current time as an aware datetime in UTC: the default of every `timestamp`."""
    return datetime.now(UTC)


@attrs.frozen(kw_only=True)
class Event:
    """The base of all events; construct one of its subclasses.

    Attributes:
        wire_name: the event's name as the API spells it, e.g. ``"addToBasket"``; also the name of its endpoint.
        batchable: whether a `visitorEvents` batch may hold events of this class; default True. Otherwise each event is
            sent alone to its own endpoint.
        at_most_once: whether events of this class are never sent again if the API may have recorded them; default
            False. `RetryPolicy.at_most_once` can change this.
    """

    wire_name: ClassVar[str] = ""
    batchable: ClassVar[bool] = True
    at_most_once: ClassVar[bool] = False

    @property
    def event_name(self) -> str:
        """The event's name as the API spells it, e.g. ``"addToBasket"``."""
        return self.wire_name


@attrs.frozen(kw_only=True)
class VisitorEvent(Event):
    """An event of one visitor at one moment: the base of all documented events.

    Attributes:
        session_external_id: the visitor's device or browser, 1-50 ASCII letters and digits; see `new_session_id`.
        timestamp: when the visitor acted, an aware datetime; default now, in UTC. The time zone is replaced by a
            fixed offset. By default the client sends whole seconds.
        extra: fields that the API's documentation does not name, by their JSON names, e.g.
            ``{"link": {"name": "crm", "value": "42"}}``; sent beside the documented fields. The package checks only
            that the values are JSON, with the limits of `custom_data`, and that no name is that of a documented field
            of the event. Copied at construction; an empty mapping becomes None. Default None.
    """

    session_external_id: str = attrs.field(validator=identifier)
    timestamp: datetime = attrs.field(factory=utc_now, converter=fixed_moment, validator=moment)
    # A dict has no hash, so the hash of an event ignores this field. Equal events still have equal hashes.
    extra: dict[str, Json] | None = attrs.field(
        default=None, converter=frozen_extra, validator=undocumented, hash=False
    )


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
    email: str | None = attrs.field(default=None, validator=optional_email)
    phone: str | None = attrs.field(default=None, validator=phone)
    # As `extra`, the field has no part in the hash.
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


@attrs.frozen(kw_only=True)
class EmailClick(VisitorEvent):
    """A visitor comes to the shop from a letter (`POST emailClick`).

    Attributes:
        mail_tracking_id: the value of the query parameter ``MailTrackingId``, which every link in a letter has; not
            empty.
        custom_data: as `SetContact.custom_data`; default None.
    """

    wire_name: ClassVar[str] = "emailClick"
    mail_tracking_id: str = attrs.field(validator=phrase)
    custom_data: dict[str, Json] | None = attrs.field(
        default=None, converter=frozen_object, validator=optional_json_object, hash=False
    )


@attrs.frozen(kw_only=True)
class WelcomeSequence(VisitorEvent):
    """The welcome letters for an address begin (`POST welcomeSequence`).

    Each call sends the letters once more. So the client never sends this event again if the API may have recorded it:
    the event is then `Abandoned` with reason ``"at_most_once"``. See `RetryPolicy.at_most_once`.

    Attributes:
        email: the address; it must be among the shop's subscribers already.
    """

    wire_name: ClassVar[str] = "welcomeSequence"
    at_most_once: ClassVar[bool] = True
    email: str = attrs.field(validator=email)


@attrs.frozen(kw_only=True)
class CategoryViewByCategoryPath(VisitorEvent):
    """A category page is viewed, in a shop that names categories by path (`POST categoryViewByCategoryPath`).

    A shop names categories by path if its catalogue comes by the Product API; other shops send `CategoryView`. No batch
    may hold this event, so the event travels alone to its own endpoint.

    Attributes:
        category_path: the names of the category and of those above it, from the top, divided by ``/``; not empty, in
            any language, e.g. ``"Товары для дома/Кухня/Вилки"``.
    """

    wire_name: ClassVar[str] = "categoryViewByCategoryPath"
    batchable: ClassVar[bool] = False
    category_path: str = attrs.field(validator=phrase)


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
        EmailClick,
        WelcomeSequence,
        CategoryViewByCategoryPath,
    )
}
"""The documented event classes by the event's name in the API."""

UNBATCHABLE: frozenset[str] = frozenset(name for name, cls in EVENT_TYPES.items() if not cls.batchable)
"""The names of the events that no `visitorEvents` batch may hold; see `Event.batchable`."""

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


def new_session_id() -> str:
    """Return a fresh `session_external_id`: a random GUID without hyphens, 32 letters and digits.

    Store the id on the device or in the browser, for example in a cookie that lasts a year. The id must stay the same
    when the visitor logs in or out.
    Source: API document, "Fields", `sessionExternalId`.
    """
    return uuid.uuid4().hex
