"""Each curl example of the API document, with the contract's corrections, equals the request that the client sends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from retailrocket_async import (
    AddToBasket,
    AsyncTrackingClient,
    CategoryView,
    Event,
    GroupView,
    Order,
    Search,
    View,
)
from tests.support.raw_server import Arrived, raw_server

API_KEY = "608423a104249fa8e9952323"
PARTNER_ID = "608423a9b126ac6ab3f8f0a5"
SESSION = "60842392e4881c65e6c5e423"
WHEN = datetime(2018, 9, 15, 15, 53, tzinfo=UTC)
WHEN_ON_WIRE = "2018-09-15T15:53:00+00:00"
PHRASE = "подгузник для новорожденных"

# One row per curl call of the document: the endpoint, the event, and the body that the document shows.
SINGLE: list[tuple[str, Event, dict[str, Any]]] = [
    (
        "view",
        View(session_external_id=SESSION, product_id=123456, stock_id="NewYork", timestamp=WHEN),
        {"sessionExternalId": SESSION, "productId": 123456, "stockId": "NewYork", "timestamp": WHEN_ON_WIRE},
    ),
    (
        "groupView",
        GroupView(
            session_external_id=SESSION,
            group_id=654321,
            product_ids=[123456, 234567, 345678],
            stock_id="NewYork",
            timestamp=WHEN,
        ),
        # The document's example misspells the field `groupId` as `groupView`; the contract corrects this.
        {
            "sessionExternalId": SESSION,
            "groupId": 654321,
            "productIds": [123456, 234567, 345678],
            "stockId": "NewYork",
            "timestamp": WHEN_ON_WIRE,
        },
    ),
    (
        "addToBasket",
        AddToBasket(session_external_id=SESSION, product_id=123456, stock_id="NewYork", timestamp=WHEN),
        {"sessionExternalId": SESSION, "productId": 123456, "stockId": "NewYork", "timestamp": WHEN_ON_WIRE},
    ),
    (
        "order",
        Order(
            session_external_id=SESSION,
            product_id=123456,
            stock_id="NewYork",
            quantity=2,
            price=234,
            transaction="135243",
            timestamp=WHEN,
        ),
        {
            "sessionExternalId": SESSION,
            "productId": 123456,
            "stockId": "NewYork",
            "quantity": 2,
            "price": 234,
            "transaction": "135243",
            "timestamp": WHEN_ON_WIRE,
        },
    ),
    (
        "categoryView",
        CategoryView(session_external_id=SESSION, category_id=123456, timestamp=WHEN),
        {"sessionExternalId": SESSION, "categoryId": 123456, "timestamp": WHEN_ON_WIRE},
    ),
    (
        "search",
        Search(session_external_id=SESSION, search_phrase=PHRASE, timestamp=WHEN),
        {"sessionExternalId": SESSION, "searchPhrase": PHRASE, "timestamp": WHEN_ON_WIRE},
    ),
]

# These are the events of the document's `visitorEvents` call; its trailing comma is removed, because JSON forbids it.
BATCH_EVENTS: list[Event] = [
    View(session_external_id=SESSION, product_id=123456, stock_id="NewYork", timestamp=WHEN),
    GroupView(
        session_external_id=SESSION,
        group_id=654321,
        product_ids=[123456, 234567, 345678],
        stock_id="NewYork",
        timestamp=WHEN,
    ),
    AddToBasket(session_external_id=SESSION, product_id=234567, stock_id="NewYork", timestamp=WHEN),
    Order(
        session_external_id=SESSION,
        product_id=234567,
        stock_id="NewYork",
        quantity=3,
        price=1321.43,
        transaction="135243",
        timestamp=WHEN,
    ),
    CategoryView(session_external_id=SESSION, category_id=123456, timestamp=WHEN),
    Search(session_external_id=SESSION, search_phrase=PHRASE, timestamp=WHEN),
]
BATCH_BODY: list[dict[str, Any]] = [
    {
        "view": {
            "sessionExternalId": SESSION,
            "productId": 123456,
            "stockId": "NewYork",
            "timestamp": WHEN_ON_WIRE,
        }
    },
    {
        "groupView": {
            "sessionExternalId": SESSION,
            "groupId": 654321,
            "productIds": [123456, 234567, 345678],
            "stockId": "NewYork",
            "timestamp": WHEN_ON_WIRE,
        }
    },
    {
        "addToBasket": {
            "sessionExternalId": SESSION,
            "productId": 234567,
            "stockId": "NewYork",
            "timestamp": WHEN_ON_WIRE,
        }
    },
    {
        "order": {
            "sessionExternalId": SESSION,
            "productId": 234567,
            "stockId": "NewYork",
            "quantity": 3,
            "price": 1321.43,
            "transaction": "135243",
            "timestamp": WHEN_ON_WIRE,
        }
    },
    {"categoryView": {"sessionExternalId": SESSION, "categoryId": 123456, "timestamp": WHEN_ON_WIRE}},
    {"search": {"sessionExternalId": SESSION, "searchPhrase": PHRASE, "timestamp": WHEN_ON_WIRE}},
]


def _seen(request: Arrived) -> tuple[str, str, dict[str, list[str]], str, Any]:
    return request.method, request.path, request.query, request.headers["content-type"], request.json


def _expected(endpoint: str, body: object) -> tuple[str, str, dict[str, list[str]], str, object]:
    return "POST", f"/1.0/{endpoint}", {"apiKey": [API_KEY], "partnerId": [PARTNER_ID]}, "application/json", body


@pytest.mark.parametrize(("endpoint", "event", "body"), SINGLE, ids=[row[0] for row in SINGLE])
async def test_each_single_example_arrives_as_the_document_shows_it(
    endpoint: str, event: Event, body: dict[str, Any]
) -> None:
    """If an event is sent directly, method, path, query, header and JSON are as in the document."""
    async with raw_server() as server, AsyncTrackingClient(API_KEY, PARTNER_ID, base_url=server.url) as client:
        await client.send(event)

        assert [_expected(endpoint, body)] == [_seen(request) for request in server.arrived]


@pytest.mark.parametrize("how", ["send_batch", "track_many"])
async def test_the_batch_example_arrives_as_the_document_shows_it(how: str) -> None:
    """If the example events are sent by `send_batch` or tracked, the only request equals the document's request."""
    async with raw_server() as server, AsyncTrackingClient(API_KEY, PARTNER_ID, base_url=server.url) as client:
        await getattr(client, how)(BATCH_EVENTS)
        await client.flush()

        assert [_expected("visitorEvents", BATCH_BODY)] == [_seen(request) for request in server.arrived]


async def test_the_typed_methods_make_the_same_requests() -> None:
    """If methods such as `client.view` get the fields of the batch example, the request is as in the document."""
    who = {"session_external_id": SESSION, "timestamp": WHEN}
    async with raw_server() as server, AsyncTrackingClient(API_KEY, PARTNER_ID, base_url=server.url) as client:
        await client.view(product_id=123456, stock_id="NewYork", **who)
        await client.group_view(group_id=654321, product_ids=[123456, 234567, 345678], stock_id="NewYork", **who)
        await client.add_to_basket(product_id=234567, stock_id="NewYork", **who)
        await client.order(
            product_id=234567, stock_id="NewYork", quantity=3, price=1321.43, transaction="135243", **who
        )
        await client.category_view(category_id=123456, **who)
        await client.search(search_phrase=PHRASE, **who)
        await client.flush()

        assert [_expected("visitorEvents", BATCH_BODY)] == [_seen(request) for request in server.arrived]
