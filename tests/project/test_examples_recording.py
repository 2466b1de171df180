"""Tests of the example shops with a `RecordingClient`: each visit is tracked; an outage does not disturb visitors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import CookieJar
from aiohttp.test_utils import TestClient as AiohttpBrowser
from aiohttp.test_utils import TestServer
from fastapi.testclient import TestClient

from examples.aiohttp_shop.app import make_app
from examples.aiohttp_shop.app import rocket as aiohttp_rocket
from examples.fastapi_shop.app import app
from examples.fastapi_shop.tracking import rocket
from examples.shop.catalogue import PRODUCTS
from retailrocket_async import AddToBasket, Order, Search, SetContact, View

if TYPE_CHECKING:
    from retailrocket_async.testing import RecordingClient

FIRST, SECOND = list(PRODUCTS)[:2]


def test_a_visit_to_the_fastapi_shop(tracked: RecordingClient) -> None:
    """If a visitor searches, views, fills a basket and orders, each step is tracked with the shop's prices."""
    with rocket.using(tracked), TestClient(app) as browser:
        browser.get("/search", params={"phrase": "cup"}).raise_for_status()
        browser.get(f"/product/{FIRST}").raise_for_status()
        for product_id in (FIRST, FIRST, SECOND):
            browser.post(f"/basket/{product_id}").raise_for_status()
        browser.post("/checkout", data={"email": "anna@example.org"}).raise_for_status()
        visitor = browser.cookies["retailrocket_session"]

    assert tracked.one(Search).search_phrase == "cup"
    assert tracked.one(View).product_id == FIRST
    assert [added.product_id for added in tracked.of(AddToBasket)] == [FIRST, FIRST, SECOND]
    lines = tracked.of(Order)
    assert {(line.product_id, line.quantity) for line in lines} == {(FIRST, 2), (SECOND, 1)}
    assert {line.price for line in lines} == {PRODUCTS[FIRST].price, PRODUCTS[SECOND].price}
    assert len({line.transaction for line in lines}) == 1
    assert tracked.one(SetContact).email == "anna@example.org"
    assert {event.session_external_id for event in tracked.events} == {visitor}  # type: ignore[attr-defined]


def test_an_outage_does_not_disturb_the_visitor(tracked: RecordingClient) -> None:
    """If the API is down, the shop still serves pages and accepts orders."""
    tracked.fail_with(status=503, times=None)
    with rocket.using(tracked), TestClient(app) as browser:
        browser.post(f"/basket/{FIRST}").raise_for_status()
        browser.post("/checkout", data={"email": "anna@example.org"}).raise_for_status()
    assert tracked.one(Order, product_id=FIRST).quantity == 1


async def test_a_visit_to_the_aiohttp_shop(tracked: RecordingClient) -> None:
    """If a visitor views products, fills a basket and orders in the aiohttp shop, each step is tracked."""
    with aiohttp_rocket.using(tracked):
        async with AiohttpBrowser(TestServer(make_app()), cookie_jar=CookieJar(unsafe=True)) as browser:
            for path in (f"/product/{FIRST}", f"/product/{SECOND}"):
                assert (await browser.get(path)).status == 200
            assert (await browser.post(f"/basket/{SECOND}")).status == 200
            assert (await browser.post("/checkout", data={"email": "anna@example.org"})).status == 200

    assert [view.product_id for view in tracked.of(View)] == [FIRST, SECOND]
    assert tracked.one(Order, product_id=SECOND).price == PRODUCTS[SECOND].price
