"""The shop's pages, as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from examples.shop.catalogue import BESTSELLERS, CATEGORIES, PRODUCTS, Product, recommended

if TYPE_CHECKING:
    from collections.abc import Iterable

    from examples.shop.basket import Basket


def _page(title: str, body: str) -> str:
    search = '<form action="/search"><input name="phrase" required><button>Search</button></form>'
    return f"<!doctype html><title>{escape(title)}</title>{search}<h1>{escape(title)}</h1>{body}"


def _links(products: Iterable[Product], query: str = "") -> str:
    items = (f'<li><a href="/product/{each.id}{query}">{escape(each.name)}</a></li>' for each in products)
    return f"<ul>{''.join(items)}</ul>"


def home() -> str:
    """Return the page with the categories."""
    items = (f'<li><a href="/category/{key}">{escape(name)}</a></li>' for key, name in CATEGORIES.items())
    return _page("The shop", f"<ul>{''.join(items)}</ul>")


def listing(title: str, products: Iterable[Product]) -> str:
    """Return a page that lists products, of a category or of a search."""
    return _page(title, _links(products))


def product(shown: Product) -> str:
    """Return the page of a product, with a block of recommendations."""
    buy = f'<form method="post" action="/basket/{shown.id}"><button>Buy for {shown.price}</button></form>'
    return _page(shown.name, f"{buy}<h2>Bestsellers</h2>{_links(recommended(shown), f'?block={BESTSELLERS}')}")


def basket(of_visitor: Basket) -> str:
    """Return the page of the basket, with the form to order."""
    lines = (
        f"<li>{escape(PRODUCTS[line['product_id']].name)} x {line['quantity']}</li>" for line in of_visitor.lines()
    )
    pay = (
        '<form method="post" action="/checkout"><input name="email" type="email" required><button>Order</button></form>'
    )
    return _page("Basket", f"<ul>{''.join(lines)}</ul><p>{of_visitor.total}</p>{pay}")


def thanks(transaction: str) -> str:
    """Return the page that confirms an order."""
    return _page("Thank you", f"<p>Your order is {escape(transaction)}.</p>")
