"""A visitor's basket, which is stored in a cookie so that every worker process can read it."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from examples.shop.catalogue import PRODUCTS

if TYPE_CHECKING:
    from decimal import Decimal

COOKIE = "basket"


class Basket:
    """The products in a visitor's basket.

    Args:
        cookie: the ids of the products, e.g. ``"101-201-201"``; unknown ids are ignored.
    """

    def __init__(self, cookie: str = "") -> None:
        ids = [int(found) for found in re.findall(r"[0-9]{1,9}", cookie)]
        self._ids = [product_id for product_id in ids if product_id in PRODUCTS]

    def add(self, product_id: int) -> None:
        """Add one piece of a product."""
        self._ids.append(product_id)

    @property
    def cookie(self) -> str:
        """The value of the cookie."""
        return "-".join(map(str, self._ids))

    @property
    def total(self) -> Decimal | int:
        """The price of all products together."""
        return sum(PRODUCTS[product_id].price for product_id in self._ids)

    def lines(self) -> list[dict[str, Any]]:
        """Return one order line for each product, in the form that `retailrocket_async.order_lines` takes."""
        return [
            {"product_id": product_id, "quantity": count, "price": PRODUCTS[product_id].price}
            for product_id, count in Counter(self._ids).items()
        ]
