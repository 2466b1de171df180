"""The shops of examples/, each with two worker processes, record every step of concurrent visitors."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retailrocket_async.emulator import EmulatorProcess, emulator_process
from tests.support.example_process import ended, example

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sockets are handed down"),
]

SERVERS = {
    "fastapi": ["uvicorn", "--fd={fd}", "examples.fastapi_shop.app:app"],
    "aiohttp": [
        "gunicorn",
        "--no-control-socket",
        "--bind=fd://{fd}",
        "--worker-class=aiohttp.GunicornWebWorker",
        "examples.aiohttp_shop.app:app",
    ],
}
VISITORS = 4


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    """Provide an emulator in its own process."""
    with emulator_process() as emulator:
        yield emulator


def walk(address: str) -> tuple[str, str]:
    """Visit the shop and place an order. Return the session id and the order's number."""
    with httpx.Client(
        base_url=address, timeout=30, follow_redirects=True, limits=httpx.Limits(max_connections=1)
    ) as browser:
        assert "set-cookie" not in browser.get("/").raise_for_status().headers
        browser.get("/category/10").raise_for_status()
        visitor = browser.cookies["retailrocket_session"]
        browser.get("/search", params={"phrase": "cup"}).raise_for_status()
        assert "Cup, small" in browser.get("/product/101").raise_for_status().text
        browser.get("/product/201", params={"block": "bestsellers"}).raise_for_status()
        assert browser.get("/product/999").status_code == 404
        assert browser.post("/checkout", data={"email": "a@shop.test"}).status_code == 400
        for product_id in (101, 201, 201):
            basket = browser.post(f"/basket/{product_id}").raise_for_status()
        assert "Cup, small x 2" in basket.text
        thanks = browser.post("/checkout", data={"email": "a@shop.test"}).raise_for_status()
        [transaction] = re.findall(r"order is (\w+)", thanks.text)
        assert browser.cookies["retailrocket_session"] == visitor
    return visitor, transaction


def expected(transaction: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the events that one visit with this order must record, in order."""
    return [
        ("categoryView", {"categoryId": 10}),
        ("search", {"searchPhrase": "cup"}),
        ("view", {"productId": 101}),
        ("recomBlockViewed", {"recomBlockId": "bestsellers"}),
        ("recomTap", {"productId": 201, "recomBlockId": "bestsellers"}),
        ("view", {"productId": 201}),
        ("recomBlockViewed", {"recomBlockId": "bestsellers"}),
        ("addToBasket", {"productId": 101}),
        ("addToBasket", {"productId": 201}),
        ("addToBasket", {"productId": 201}),
        ("setContact", {"email": "a@shop.test"}),
        ("order", {"productId": 101, "quantity": 1, "price": 1321.43, "transaction": transaction}),
        ("order", {"productId": 201, "quantity": 2, "price": 119.9, "transaction": transaction}),
    ]


@pytest.mark.parametrize("server", SERVERS)
def test_every_step_of_every_visitor_is_recorded_in_order(server: str, emulator: EmulatorProcess) -> None:
    """If SIGTERM ends the shop directly after the visits, every step is recorded once, in order, for its visitor."""
    emulator.reset()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [part.format(fd=listener.fileno()) for part in SERVERS[server]]
        with example(*command, emulator=emulator, pass_fds=(listener.fileno(),), WEB_CONCURRENCY="2") as shop:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with ThreadPoolExecutor(VISITORS) as visitors:
                walks = dict(visitors.map(walk, [address] * VISITORS))
            status, printed = ended(shop)

    recorded: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for event in emulator.events():
        fields = event["fields"]
        kept = {
            key: value
            for key, value in fields.items()
            if key not in ("sessionExternalId", "timestamp", "contactExternalId")
        }
        recorded.setdefault(fields["sessionExternalId"], []).append((event["name"], kept))
    assert status == 0, printed
    assert "Traceback" not in printed
    assert {visitor: expected(transaction) for visitor, transaction in walks.items()} == recorded
    assert emulator.refused() == []
