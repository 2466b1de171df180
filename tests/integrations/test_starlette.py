"""The client in Starlette applications: lifespans, mounted applications, several shops, and the session cookie."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    ConfigurationError,
    UsageError,
    View,
    new_session_id,
)
from retailrocket_async.asgi import client_of
from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process
from retailrocket_async.session import Session
from retailrocket_async.starlette import RetailRocket, SessionCookie, session_id
from tests.support.effort import most

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

VISITOR = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[EmulatorProcess]:
    """Provide one emulator, in its own process, for all tests."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> EmulatorProcess:
    """Provide the emulator without recorded events, and set the environment variables that `from_env` reads."""
    server.reset()
    monkeypatch.setenv("RETAILROCKET_API_KEY", Settings().api_key)
    monkeypatch.setenv("RETAILROCKET_PARTNER_ID", Settings().partner_id)
    monkeypatch.setenv("RETAILROCKET_BASE_URL", server.url)
    return server


async def product(request: Request) -> Response:
    """Track a view with the application's client."""
    await client_of(request.scope).view(session_external_id=VISITOR, product_id=1)
    return PlainTextResponse("a product page")


def test_what_is_tracked_is_delivered_when_the_application_ends(emulator: EmulatorProcess) -> None:
    """If events are tracked, they are delivered at the latest when the application ends."""
    rocket = RetailRocket(batching=Batching(linger=600))
    app = Starlette(routes=[Route("/", product)], lifespan=rocket.lifespan)

    with TestClient(app) as browser:
        browser.get("/").raise_for_status()
        assert emulator.events() == []
        assert browser.app_state["tracking"].stats().tracked == 1

    assert [event["name"] for event in emulator.events()] == ["view"]


def test_nothing_is_read_before_the_start(emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a setting is missing, the error is raised when the application starts, not when its module is imported."""
    monkeypatch.delenv("RETAILROCKET_API_KEY")
    app = Starlette(lifespan=RetailRocket().lifespan)

    with pytest.raises(ConfigurationError, match="RETAILROCKET_API_KEY"), TestClient(app):
        pass


@pytest.mark.usefixtures("emulator")
def test_the_applications_own_lifespan_runs_inside() -> None:
    """If the application has its own lifespan, it runs while the client is open, and the two states are merged."""
    rocket = RetailRocket()
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        assert isinstance(app, Starlette)
        seen.append("started")
        yield {"database": "open"}
        seen.append("ended")

    with TestClient(Starlette(lifespan=rocket.lifespan_with(own))) as browser:
        assert browser.app_state.keys() == {"tracking", "tracking_threadsafe", "database"}
        client = browser.app_state["tracking"]
        assert "open" in repr(client) or "new" in repr(client)

    assert seen == ["started", "ended"]
    assert "closed" in repr(client)


@pytest.mark.usefixtures("emulator")
def test_the_client_is_closed_where_the_own_lifespan_fails() -> None:
    """If the application's own start fails, its error is raised, and the client is closed."""
    made: list[AsyncTrackingClient] = []

    def make(**options: Any) -> AsyncTrackingClient:
        made.append(AsyncTrackingClient.from_env(**options))
        return made[0]

    @asynccontextmanager
    async def own(app: object) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with (
        pytest.raises(OSError, match="no database"),
        TestClient(Starlette(lifespan=RetailRocket(make).lifespan_with(own))),
    ):
        pass

    assert "closed" in repr(made[0])


def test_a_sync_endpoint_has_a_handle(emulator: EmulatorProcess) -> None:
    """If Starlette runs code in a thread, the code can track with the client's handle."""
    rocket = RetailRocket()

    def in_a_thread(request: Request) -> Response:
        rocket.threadsafe(request).track(View(session_external_id=VISITOR, product_id=1), timeout=10)
        return PlainTextResponse("a product page")

    with TestClient(Starlette(routes=[Route("/", in_a_thread)], lifespan=rocket.lifespan)) as browser:
        browser.get("/").raise_for_status()

    assert len(emulator.events("view")) == 1


def test_several_shops(emulator: EmulatorProcess) -> None:
    """If an application has several shops, each `RetailRocket` has its own client under its own name."""
    first = RetailRocket()
    second = RetailRocket(lambda: AsyncTrackingClient("other-key", "other", base_url=emulator.url), name="other")

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{first.client(request)!r} {second.client(request)!r}")

    app = Starlette(routes=[Route("/", page)], lifespan=first.lifespan_with(second.lifespan))
    with TestClient(app) as browser:
        shops = re.findall(r"partner_id='([\w-]+)'", browser.get("/").text)

    assert shops == [Settings().partner_id, "other"]


@pytest.mark.usefixtures("emulator")
def test_one_name_is_not_for_two() -> None:
    """If two clients have the same name, an error is raised."""
    app = Starlette(lifespan=RetailRocket().lifespan_with(RetailRocket().lifespan))

    with pytest.raises(ConfigurationError, match="both lifespans define 'tracking'"), TestClient(app):
        pass


def test_a_mounted_application_has_the_client_of_its_parent(emulator: EmulatorProcess) -> None:
    """If an application is mounted, it uses the outermost application's client: its own lifespan does not run."""
    inner = Starlette(routes=[Route("/", product)])
    app = Starlette(routes=[Mount("/outer/inner", inner)], lifespan=RetailRocket().lifespan)

    with TestClient(app) as browser:
        browser.get("/outer/inner/").raise_for_status()

    assert len(emulator.events("view")) == 1


@pytest.mark.usefixtures("emulator")
def test_without_its_lifespan_there_is_no_client() -> None:
    """If no lifespan was run, in a mounted application or in a test, using the client raises an error with advice."""
    inner = Starlette(routes=[Route("/", product)], lifespan=RetailRocket().lifespan)

    with (
        TestClient(Starlette(routes=[Mount("/inner", inner)])) as browser,
        pytest.raises(UsageError, match="lifespan was not run"),
    ):
        browser.get("/inner/")
    with pytest.raises(UsageError, match="with TestClient"):
        TestClient(inner).get("/")


def test_a_test_uses_another_client(emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an application starts inside `using`, it uses and closes the given client, without environment variables."""
    for name in ("API_KEY", "PARTNER_ID", "BASE_URL"):
        monkeypatch.delenv(f"RETAILROCKET_{name}")
    rocket = RetailRocket()
    app = Starlette(routes=[Route("/", product)], lifespan=rocket.lifespan)
    mine = AsyncTrackingClient(Settings().api_key, Settings().partner_id, base_url=emulator.url)

    with rocket.using(mine) as given, TestClient(app) as browser:
        browser.get("/").raise_for_status()
    with pytest.raises(ConfigurationError, match="RETAILROCKET_API_KEY"), TestClient(app):
        pass

    assert given is mine
    assert "closed" in repr(mine)
    assert mine.stats().delivered == 1


def test_grace_bounds_the_end(emulator: EmulatorProcess) -> None:
    """If the API does not answer, the application's end is delayed by at most `grace`."""
    emulator.add_faults([{"kind": "stall", "times": 1}])
    app = Starlette(routes=[Route("/", product)], lifespan=RetailRocket(grace=0.05).lifespan)

    with TestClient(app) as browser:
        browser.get("/").raise_for_status()
        client = browser.app_state["tracking"]

    assert client.stats().abandoned + client.stats().dropped == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"name": "two words"}, "name"), ({"grace": -1}, "grace"), ({"grace": None}, "grace")],
    ids=str,
)
def test_what_cannot_work_is_refused_at_once(arguments: dict[str, Any], field: str) -> None:
    """If an argument is wrong, the constructor raises an error whose frames do not contain the key."""
    with pytest.raises(ConfigurationError, match=field) as raised:
        RetailRocket(**arguments, api_key="the-secret-key")

    frames = [entry.frame.f_locals for entry in raised.traceback[1:]]
    assert frames
    assert "the-secret-key" not in repr(frames)


def test_what_is_no_factory_or_lifespan_is_refused() -> None:
    """If a client stands in place of a factory, or a generator in place of a context manager, an error is raised."""

    async def own(app: object) -> AsyncIterator[None]:
        yield

    with pytest.raises(ConfigurationError, match="make"):
        RetailRocket(AsyncTrackingClient("key", "shop"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="asynccontextmanager"):
        RetailRocket().lifespan_with(own)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cookie"):
        SessionCookie(Starlette(), name="a;b")


async def visit(request: Request) -> Response:
    """Return the session id twice."""
    match request.path_params["kind"]:
        case "plain":
            return PlainTextResponse(f"{session_id(request)} {session_id(request)}")
        case "redirect":
            session_id(request)
            return RedirectResponse("/plain")
        case "error":
            session_id(request)
            raise HTTPException(404)
        case _:
            return PlainTextResponse("no session used")


async def talk(websocket: WebSocket) -> None:
    """Send the session id over a websocket."""
    visitor = session_id(websocket)
    await websocket.accept(headers=[(b"x-own", b"1")])
    await websocket.send_text(visitor)
    await websocket.close()


SITE = Starlette(
    routes=[Route("/{kind}", visit), WebSocketRoute("/ws/talk", talk)], middleware=[Middleware(SessionCookie)]
)
HEADER = re.compile(r"retailrocket_session=([0-9a-f]{32}); HttpOnly; Max-Age=31536000; Path=/; SameSite=Lax(; Secure)?")


@pytest.mark.parametrize(("scheme", "secure"), [("http", None), ("https", "; Secure")])
def test_a_new_visitor_gets_a_cookie_once(scheme: str, secure: str | None) -> None:
    """If a visitor is new, the first response sets the cookie; later requests have the session and set no cookie."""
    browser = TestClient(SITE, base_url=f"{scheme}://shop.test")

    first = browser.get("/plain")
    second = browser.get("/plain")

    found = HEADER.fullmatch(first.headers["set-cookie"])
    assert found is not None
    assert (f"{found[1]} {found[1]}", secure) == (first.text, found[2])
    assert (first.text, False) == (second.text, "set-cookie" in second.headers)


@pytest.mark.parametrize("kind", ["redirect", "error"])
def test_every_kind_of_answer_brings_the_cookie(kind: str) -> None:
    """If the response is a redirect or an error, it sets the cookie, too."""
    assert HEADER.fullmatch(TestClient(SITE).get(f"/{kind}", follow_redirects=False).headers["set-cookie"])


def test_who_does_not_ask_sets_no_cookie() -> None:
    """If the session is not used, the response sets no cookie, so that it may be cached."""
    assert "set-cookie" not in TestClient(SITE).get("/static").headers


def test_a_websocket_brings_the_cookie() -> None:
    """If a websocket is accepted, the cookie is set in addition to the other headers."""
    with TestClient(SITE).websocket_connect("/ws/talk") as socket:
        headers = dict(socket.extra_headers or [])
        visitor = socket.receive_text()

    assert headers[b"x-own"] == b"1"
    assert headers[b"set-cookie"].startswith(f"retailrocket_session={visitor};".encode())


@pytest.mark.parametrize(
    "header", ['a={"b; c}; retailrocket_session={}', "retailrocket_session={}; a=b", 'x=y;retailrocket_session="{}"']
)
def test_the_cookie_is_found_among_others(header: str) -> None:
    """If the header contains other cookies, the session's cookie is still found."""
    answer = TestClient(SITE).get("/plain", headers={"cookie": header.replace("{}", VISITOR)})

    assert answer.text == f"{VISITOR} {VISITOR}"


@pytest.mark.parametrize("value", ["", "a-b", "x" * 51, "ёж".encode().decode("latin-1"), "a%20b"], ids=ascii)
def test_a_cookie_that_breaks_the_rule_is_replaced(value: str) -> None:
    """If a cookie is not a valid session id, the response sets a new cookie."""
    answer = TestClient(SITE).get("/plain", headers={"cookie": f"retailrocket_session={value}".encode("latin-1")})

    assert HEADER.fullmatch(answer.headers["set-cookie"])


@settings(max_examples=most(30), deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"\A[0-9A-Za-z]{1,50}\Z"))
def test_a_session_is_kept_only_by_the_rule(value: str) -> None:
    """If and only if a cookie's value has 1-50 ASCII letters and digits, it is used as the session id."""
    kept = re.fullmatch(r"[0-9A-Za-z]{1,50}", value, re.ASCII) is not None
    session = Session("name", value)

    assert (session.id == value) == kept
    assert (session.set_cookie(https=False) is None) == kept


def test_without_the_middleware_there_is_no_session() -> None:
    """If the middleware is missing, using the session raises an error that names the middleware."""
    bare = Starlette(routes=[Route("/{kind}", visit)])

    with pytest.raises(UsageError, match="SessionCookie"):
        TestClient(bare).get("/plain")


def test_a_new_session_is_as_the_package_makes_it() -> None:
    """If a visitor's session is new, its id is as long as an id from `new_session_id`."""
    assert len(Session("name", None).id) == len(new_session_id())
