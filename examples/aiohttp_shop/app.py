"""The shop's application: `WEB_CONCURRENCY=2 gunicorn -k aiohttp.GunicornWebWorker examples.aiohttp_shop.app:app`."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from aiohttp import web

from examples.shop import pages
from examples.shop.basket import COOKIE, Basket
from examples.shop.catalogue import BESTSELLERS, CATEGORIES, PRODUCTS, Product, found, in_category
from retailrocket_async import AsyncTrackingClient, EventValidationError, RateLimit, order_lines
from retailrocket_async.aiohttp import RetailRocket, add_session_cookie, session_id


def make() -> AsyncTrackingClient:
    """Return the client of this worker process; the workers divide the shop's request limit among them."""
    workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
    return AsyncTrackingClient.from_env(rate_limit=RateLimit(requests=50 // workers))


rocket = RetailRocket(make, grace=10)
routes = web.RouteTableDef()


def html(text: str) -> web.Response:
    """Return a response with an HTML page."""
    return web.Response(text=text, content_type="text/html")


def product_of(request: web.Request) -> Product:
    """Return the product of the path, or answer 404."""
    product = PRODUCTS.get(int(request.match_info["id"]))
    if product is None:
        raise web.HTTPNotFound
    return product


def basket_of(request: web.Request) -> Basket:
    """Return the visitor's basket."""
    return Basket(request.cookies.get(COOKIE, ""))


@routes.get("/")
async def home(_: web.Request) -> web.Response:
    """Show the categories."""
    return html(pages.home())


@routes.get(r"/category/{id:\d{1,9}}")
async def category(request: web.Request) -> web.Response:
    """Show the products of a category."""
    category_id = int(request.match_info["id"])
    if category_id not in CATEGORIES:
        raise web.HTTPNotFound
    await rocket.client(request).category_view(session_external_id=session_id(request), category_id=category_id)
    return html(pages.listing(CATEGORIES[category_id], in_category(category_id)))


@routes.get("/search")
async def search(request: web.Request) -> web.Response:
    """Show the results of a search."""
    phrase = request.query.get("phrase", "")
    if phrase.strip():
        await rocket.client(request).search(session_external_id=session_id(request), search_phrase=phrase)
    return html(pages.listing(f"Found for {phrase}", found(phrase)))


@routes.get(r"/product/{id:\d{1,9}}")
async def product(request: web.Request) -> web.Response:
    """Show a product and recommendations."""
    shown, tracking, visitor = product_of(request), rocket.client(request), session_id(request)
    if request.query.get("block") == BESTSELLERS:
        await tracking.recom_tap(session_external_id=visitor, product_id=shown.id, recom_block_id=BESTSELLERS)
    await tracking.view(session_external_id=visitor, product_id=shown.id)
    await tracking.recom_block_viewed(session_external_id=visitor, recom_block_id=BESTSELLERS)
    return html(pages.product(shown))


@routes.post(r"/basket/{id:\d{1,9}}")
async def add(request: web.Request) -> web.Response:
    """Add a product to the basket."""
    chosen, basket = product_of(request), basket_of(request)
    basket.add(chosen.id)
    await rocket.client(request).add_to_basket(session_external_id=session_id(request), product_id=chosen.id)
    response = web.Response(status=303, headers={"Location": "/basket"})
    response.set_cookie(COOKIE, basket.cookie)
    return response


@routes.get("/basket")
async def basket(request: web.Request) -> web.Response:
    """Show the basket."""
    return html(pages.basket(basket_of(request)))


@routes.post("/checkout")
async def checkout(request: web.Request) -> web.Response:
    """Accept the order."""
    email, lines = (await request.post()).get("email"), basket_of(request).lines()
    if not lines or not isinstance(email, str):
        raise web.HTTPBadRequest
    tracking, visitor, transaction = rocket.client(request), session_id(request), secrets.token_hex(8)
    # An invalid address must not lose the order.
    with suppress(EventValidationError):
        await tracking.set_contact(session_external_id=visitor, contact_external_id=visitor, email=email)
    await tracking.track_many(order_lines(lines, session_external_id=visitor, transaction=transaction))
    response = html(pages.thanks(transaction))
    response.del_cookie(COOKIE)
    return response


def make_app() -> web.Application:
    """Build the application."""
    made = web.Application()
    made.cleanup_ctx.append(rocket.cleanup_ctx)
    add_session_cookie(made)
    made.add_routes(routes)
    return made


app = make_app()

if __name__ == "__main__":
    web.run_app(app)
