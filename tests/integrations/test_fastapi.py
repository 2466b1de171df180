"""The client as a dependency of FastAPI: endpoints, routers, websockets, tasks, threads, sub-applications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from retailrocket_async import AsyncTrackingClient, UsageError, View
from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process
from retailrocket_async.fastapi import (
    RetailRocket,
    SessionCookie,
    SessionId,
    ThreadsafeTracking,
    Tracking,
    tracking,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

rocket = RetailRocket()
kazakhstan = RetailRocket(lambda: AsyncTrackingClient("other-key", "kazakhstan"), name="kazakhstan")
Kazakhstan = Annotated[AsyncTrackingClient, Depends(kazakhstan)]
router = APIRouter()
VISITOR = "0123456789abcdef0123456789abcdef"


@router.get("/product/{product_id}")
async def product(product_id: int, tracking: Tracking, visitor: SessionId) -> HTMLResponse:
    """Track a view, and return a response object."""
    await tracking.view(session_external_id=visitor, product_id=product_id)
    return HTMLResponse("a product page")


@router.get("/thread")
def in_a_thread(tracking: ThreadsafeTracking) -> str:
    """Track a view in the thread in which FastAPI runs a ``def`` endpoint."""
    return tracking.track(View(session_external_id=VISITOR, product_id=2), timeout=10).event_name


@router.get("/later")
async def later(tracking: Tracking, tasks: BackgroundTasks) -> str:
    """Track a view after the answer was sent."""
    tasks.add_task(tracking.view, session_external_id=VISITOR, product_id=3)
    return "later"


@router.websocket("/talk")
async def talk(websocket: WebSocket, tracking: Tracking, visitor: SessionId) -> None:
    """Track a view over a websocket."""
    await websocket.accept()
    await tracking.view(session_external_id=visitor, product_id=int(await websocket.receive_text()))
    await websocket.close()


@router.get("/shops")
async def shops(
    first: Annotated[AsyncTrackingClient, Depends(rocket)], same: Tracking, other: Kazakhstan
) -> dict[str, Any]:
    """Track a view for each of two shops."""
    return {"same": first is same, "first": repr(first), "other": repr(other)}


@pytest.fixture(scope="module")
def server() -> Iterator[EmulatorProcess]:
    """Provide one emulator, in its own process, for all tests."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """Provide the emulator without recorded events, and make the application send to it."""
    server.reset()
    with rocket.using(AsyncTrackingClient(Settings().api_key, Settings().partner_id, base_url=server.url)):
        yield server


def application() -> FastAPI:
    """Return an application with a sub-application."""
    inner = FastAPI()
    inner.include_router(router)
    app = FastAPI(lifespan=rocket.lifespan_with(kazakhstan.lifespan))
    app.add_middleware(SessionCookie)
    app.include_router(router)
    app.mount("/inner", inner)
    return app


def test_the_client_is_a_dependency_everywhere(emulator: EmulatorProcess) -> None:
    """If an endpoint, thread, background task, websocket or sub-application asks for the client, it gets the client."""
    with TestClient(application()) as browser:
        for path in ("/product/1", "/thread", "/later", "/inner/product/5"):
            browser.get(path).raise_for_status()
        with browser.websocket_connect("/talk") as socket:
            socket.send_text("4")
        visitor = browser.cookies["retailrocket_session"]

    found = {event["fields"]["productId"]: event["fields"]["sessionExternalId"] for event in emulator.events("view")}
    assert found == {1: visitor, 2: VISITOR, 3: VISITOR, 4: visitor, 5: visitor}


@pytest.mark.usefixtures("emulator")
def test_each_shop_is_a_dependency() -> None:
    """If there are several shops, each `RetailRocket` is the dependency for its own client."""
    with TestClient(application()) as browser:
        answer = browser.get("/shops").json()

    assert answer["same"]
    assert f"partner_id='{Settings().partner_id}'" in answer["first"]
    assert "partner_id='kazakhstan'" in answer["other"]


def test_a_router_may_bring_the_lifespan(emulator: EmulatorProcess) -> None:
    """If a router with the lifespan is included, the application has the client."""
    app = FastAPI()
    app.include_router(router)
    app.include_router(APIRouter(lifespan=rocket.lifespan))

    with TestClient(app) as browser:
        browser.get("/thread").raise_for_status()

    assert len(emulator.events("view")) == 1


def test_without_its_lifespan_there_is_no_client() -> None:
    """If no lifespan was run, an error says this; `dependency_overrides` work without a lifespan."""
    app = FastAPI()
    app.include_router(router)

    with pytest.raises(UsageError, match="lifespan was not run"):
        TestClient(app).get("/later")

    app.dependency_overrides[tracking] = lambda: AsyncTrackingClient("key", "shop", base_url="http://127.0.0.1:9/")
    app.dependency_overrides[rocket] = app.dependency_overrides[kazakhstan] = app.dependency_overrides[tracking]
    assert TestClient(app).get("/shops").status_code == 200


def test_the_schema_knows_nothing_of_the_client() -> None:
    """If the API's description is created, the client's dependencies add no parameters to the description."""
    for path in application().openapi()["paths"].values():
        assert [parameter["name"] for parameter in path["get"].get("parameters", [])] in ([], ["product_id"])
