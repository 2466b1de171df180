"""The products of the shop."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Product:
    """A product of the feed.

    Attributes:
        id: the id in the feed.
        name: the name on the page.
        price: the price of one piece.
        category_id: the id of its category in the feed.
    """

    id: int
    name: str
    price: Decimal
    category_id: int


CATEGORIES = {10: "Kettles", 20: "Cups"}

PRODUCTS = {
    product.id: product
    for product in (
        Product(101, "Kettle, steel", Decimal("1321.43"), 10),
        Product(102, "Kettle, enamel", Decimal("890.00"), 10),
        Product(201, "Cup, small", Decimal("119.90"), 20),
        Product(202, "Cup, large", Decimal("149.90"), 20),
    )
}

BESTSELLERS = "bestsellers"
"""The id of the recommendation block on every product page."""


def in_category(category_id: int) -> list[Product]:
    """Return the products of a category."""
    return [product for product in PRODUCTS.values() if product.category_id == category_id]


def found(phrase: str) -> list[Product]:
    """Return the products whose names contain the phrase."""
    return [product for product in PRODUCTS.values() if phrase.casefold() in product.name.casefold()]


def recommended(product: Product) -> list[Product]:
    """Return two other products, to recommend beside this one."""
    return [other for other in PRODUCTS.values() if other != product][:2]
