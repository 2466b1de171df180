"""Turns the lines of a basket into events."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, cast

from retailrocket_async._errors import EventValidationError, brief_names
from retailrocket_async._events.models import Order, utc_now
from retailrocket_async._events.validators import MAX_VALUES
from retailrocket_async._interrupt import is_interrupt


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
        EventValidationError: a line breaks a rule, has an unknown key or lacks a required key; or there are no lines.
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
    """Return `given`, a line, as a dict of its own: the caller's mapping may raise, be endless or change when read."""
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
