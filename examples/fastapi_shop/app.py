"""The shop's application: `WEB_CONCURRENCY=2 uvicorn examples.fastapi_shop.app:app`."""

import secrets
from contextlib import suppress
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, Form, HTTPException
from fastapi.responses import HTMLResponse, RedirectResponse

from examples.fastapi_shop.tracking import rocket
from examples.shop import pages
from examples.shop.basket import COOKIE, Basket
from examples.shop.catalogue import BESTSELLERS, CATEGORIES, PRODUCTS, Product, found, in_category
from retailrocket_async import EventValidationError, order_lines
from retailrocket_async.fastapi import SessionCookie, SessionId, Tracking

app = FastAPI(lifespan=rocket.lifespan, default_response_class=HTMLResponse)
app.add_middleware(SessionCookie)


def basket_of_visitor(basket: Annotated[str, Cookie(alias=COOKIE)] = "") -> Basket:
    """Return the visitor's basket."""
    return Basket(basket)


def product_by_id(product_id: int) -> Product:
    """Return the product of the path, or answer 404."""
    if product_id not in PRODUCTS:
        raise HTTPException(404)
    return PRODUCTS[product_id]


VisitorsBasket = Annotated[Basket, Depends(basket_of_visitor)]


@app.get("/")
async def home() -> str:
    """Show the categories."""
    return pages.home()


@app.get("/category/{category_id}")
async def category(category_id: int, tracking: Tracking, visitor: SessionId) -> str:
    """Show the products of a category."""
    if category_id not in CATEGORIES:
        raise HTTPException(404)
    await tracking.category_view(session_external_id=visitor, category_id=category_id)
    return pages.listing(CATEGORIES[category_id], in_category(category_id))


@app.get("/search")
async def search(phrase: str, tracking: Tracking, visitor: SessionId) -> str:
    """Show the results of a search."""
    if phrase.strip():
        await tracking.search(session_external_id=visitor, search_phrase=phrase)
    return pages.listing(f"Found for {phrase}", found(phrase))


@app.get("/product/{product_id}")
async def product(
    shown: Annotated[Product, Depends(product_by_id)], tracking: Tracking, visitor: SessionId, block: str = ""
) -> str:
    """Show a product and recommendations."""
    if block == BESTSELLERS:
        await tracking.recom_tap(session_external_id=visitor, product_id=shown.id, recom_block_id=block)
    await tracking.view(session_external_id=visitor, product_id=shown.id)
    await tracking.recom_block_viewed(session_external_id=visitor, recom_block_id=BESTSELLERS)
    return pages.product(shown)


@app.post("/basket/{product_id}")
async def add(
    chosen: Annotated[Product, Depends(product_by_id)], basket: VisitorsBasket, tracking: Tracking, visitor: SessionId
) -> RedirectResponse:
    """Add a product to the basket."""
    basket.add(chosen.id)
    await tracking.add_to_basket(session_external_id=visitor, product_id=chosen.id)
    response = RedirectResponse("/basket", status_code=303)
    response.set_cookie(COOKIE, basket.cookie)
    return response


@app.get("/basket")
async def basket(basket: VisitorsBasket) -> str:
    """Show the basket."""
    return pages.basket(basket)


@app.post("/checkout")
async def checkout(
    email: Annotated[str, Form()], basket: VisitorsBasket, tracking: Tracking, visitor: SessionId
) -> HTMLResponse:
    """Accept the order."""
    if not basket.lines():
        raise HTTPException(400, "the basket is empty")
    transaction = secrets.token_hex(8)
    # An invalid address must not lose the order.
    with suppress(EventValidationError):
        await tracking.set_contact(session_external_id=visitor, contact_external_id=visitor, email=email)
    await tracking.track_many(order_lines(basket.lines(), session_external_id=visitor, transaction=transaction))
    response = HTMLResponse(pages.thanks(transaction))
    response.delete_cookie(COOKIE)
    return response
