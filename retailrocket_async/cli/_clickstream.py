"""Turns rows of Retail Rocket's public clickstream into events.

::

    timestamp,visitorid,event,itemid,transactionid
    1430622120563,683727,view,422926,

`view`, `addtocart` and `transaction` become `View`, `AddToBasket` and `Order`. The visitor's id becomes the session id;
the timestamp is in milliseconds UTC. The clickstream has no prices and quantities, so all orders get the same price and
quantity.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from retailrocket_async import AddToBasket, EventValidationError, Order, View

if TYPE_CHECKING:
    from retailrocket_async import Event

HEADER = b"timestamp,visitorid,event,itemid,transactionid"
"""The line by which a file is recognised as a clickstream."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_DIGITS = 19
"""Number of digits of the largest int64. Longer numbers are refused before `int` is called, because `int` raises
another error for a very long number."""


class Clickstream:
    """Turns rows of the clickstream into events.

    Args:
        price: the price of one unit in every order.
        quantity: the quantity of every order.

    Raises:
        EventValidationError: the price or the quantity is not valid in an order.
    """

    def __init__(self, price: float, quantity: float) -> None:
        self._price = price
        self._quantity = quantity
        Order(session_external_id="1", product_id=1, quantity=quantity, price=price, transaction="1")

    def event(self, row: bytes) -> Event:
        """Return the event of one row.

        Raises:
            EventValidationError: a column is invalid.
        """
        try:
            text = row.decode()
        except UnicodeDecodeError as error:
            raise EventValidationError("row", "", f"must be UTF-8: byte {error.start + 1} is not") from None
        columns = text.split(",") if '"' not in text else _quoted(text)
        if len(columns) != 5:
            raise EventValidationError("row", "", f"must have 5 columns ({HEADER.decode()}), not {len(columns)}")
        moment, visitor, name, item, transaction = columns
        timestamp = self._timestamp(moment)
        product = _whole("itemid", item)
        if name == "transaction":
            return Order(
                session_external_id=visitor,
                product_id=product,
                quantity=self._quantity,
                price=self._price,
                transaction=transaction,
                timestamp=timestamp,
            )
        if name not in ("view", "addtocart"):
            raise EventValidationError("row", "event", "must be view, addtocart or transaction", name)
        if transaction:
            raise EventValidationError("row", "transactionid", f"belongs to a transaction, not to {name!r}")
        if name == "view":
            return View(session_external_id=visitor, product_id=product, timestamp=timestamp)
        return AddToBasket(session_external_id=visitor, product_id=product, timestamp=timestamp)

    def _timestamp(self, moment: str) -> datetime:
        try:
            # datetime.fromtimestamp would need a float, which cannot represent every millisecond exactly.
            return _EPOCH + timedelta(milliseconds=_whole("timestamp", moment))
        except OverflowError:
            raise EventValidationError(
                "row", "timestamp", "must be milliseconds before the year 10000", moment
            ) from None


def _whole(column: str, text: str) -> int:
    if text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS:
        return int(text)
    raise EventValidationError("row", column, "must be a whole number", text)


def _quoted(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise EventValidationError("row", "", f"must be CSV: {error}") from None
