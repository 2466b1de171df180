"""The client in aiohttp applications: opening and closing, sub-applications, several shops, and the session cookie."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from aiohttp import web

from retailrocket_async import AsyncTrackingClient, Batching, ConfigurationError, UsageError
from retailrocket_async.aiohttp import RetailRocket, add_session_cookie, session_id
from retailrocket_async.emulator import RunningEmulator, Settings, running_emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

rocket = RetailRocket(batching=Batching(linger=600))
other = RetailRocket(lambda: AsyncTrackingClient("other-key", "other"), name="other")


async def product(request: web.Request) -> web.StreamResponse:
    """Track a view, and return the kind of response that the path asks for."""
    visitor = session_id(request)
    assert visitor == session_id(request)
    await rocket.client(request).view(session_external_id=visitor, product_id=int(request.query.get("id", "1")))
    if request.path == "/missing":
        raise web.HTTPNotFound
    response = web.StreamResponse(headers={"X-Own": "1"})
    response.set_cookie("own", "1")
    await response.prepare(request)
    await response.write(visitor.encode())
    return response


async def health(_: web.Request) -> web.Response:
    """Return a response without using the session."""
    return web.Response()


def application(*, cookie: bool = True, client: bool = True) -> web.Application:
    """Return an application with a sub-application; `cookie` and `client` say whether it gets cookie and client."""
    inner = web.Application()
    inner.router.add_get("/", product)
    app = web.Application()
    if client:
        app.cleanup_ctx.append(rocket.cleanup_ctx)
    if cookie:
        add_session_cookie(app)
    app.router.add_get("/", product)
    app.router.add_get("/missing", product)
    app.router.add_get("/health", health)
    app.add_subapp("/inner", inner)
    return app


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application on a free port, and yield an HTTP client for it."""
    runner = web.AppRunner(app)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}") as browser:
            yield browser
    finally:
        await runner.cleanup()


@pytest.fixture
async def emulator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningEmulator]:
    """Provide an emulator, and set the environment variables that `from_env` reads."""
    async with running_emulator() as emulator:
        monkeypatch.setenv("RETAILROCKET_API_KEY", Settings().api_key)
        monkeypatch.setenv("RETAILROCKET_PARTNER_ID", Settings().partner_id)
        monkeypatch.setenv("RETAILROCKET_BASE_URL", emulator.url)
        yield emulator


async def test_what_is_tracked_is_delivered_when_the_application_ends(emulator: RunningEmulator) -> None:
    """If events are tracked, also in a sub-application, they are delivered at the latest when the application ends."""
    async with served(application()) as browser:
        first = await browser.get("/")
        await browser.get("/inner/", params={"id": "2"})
        assert emulator.events() == []

    assert [(event.fields["sessionExternalId"], event.fields["productId"]) for event in emulator.events("view")] == [
        (first.text, 1),
        (first.text, 2),
    ]


@pytest.mark.usefixtures("emulator")
async def test_a_new_visitor_gets_a_cookie_once() -> None:
    """If a visitor is new, the first response sets the cookie, even an error or a stream; later responses do not."""
    pattern = r"retailrocket_session=([0-9a-f]{32}); HttpOnly; Max-Age=31536000; Path=/; SameSite=Lax"
    async with served(application()) as browser:
        unasked = await browser.get("/health")
        missing = await browser.get("/missing")
        again = await browser.get("/")
        browser.cookies.clear()
        stream = await browser.get("/inner/")
        broken = await browser.get("/", headers={"cookie": "retailrocket_session=a-b"})

    assert "set-cookie" not in unasked.headers
    found = re.fullmatch(pattern, missing.headers["set-cookie"])
    assert found is not None
    assert (again.text, again.headers.get_list("set-cookie")) == (found[1], ["own=1; Path=/"])
    own, session = stream.headers.get_list("set-cookie")
    assert (own, stream.headers["x-own"]) == ("own=1; Path=/", "1")
    assert re.fullmatch(pattern, session)
    assert re.fullmatch(pattern, broken.headers.get_list("set-cookie")[1])


@pytest.mark.usefixtures("emulator")
async def test_several_shops() -> None:
    """If an application has several shops, each shop has its own client."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=f"{rocket.client(request)!r} {request.config_dict[other.key]!r}")

    app = web.Application()
    app.cleanup_ctx.extend([rocket.cleanup_ctx, other.cleanup_ctx])
    app.router.add_get("/", page)
    async with served(app) as browser:
        shops = re.findall(r"partner_id='([\w-]+)'", (await browser.get("/")).text)

    assert shops == [Settings().partner_id, "other"]


async def test_a_test_uses_another_client(emulator: RunningEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an application starts inside `using`, it uses and closes the given client, without environment variables."""
    monkeypatch.delenv("RETAILROCKET_API_KEY")
    mine = AsyncTrackingClient(Settings().api_key, Settings().partner_id, base_url=emulator.url)

    with rocket.using(mine):
        async with served(application()) as browser:
            await browser.get("/")
    with pytest.raises(ConfigurationError, match="RETAILROCKET_API_KEY"):
        async with served(application()):
            pass

    assert mine.stats().delivered == 1


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("app", "advice"),
    [
        (lambda: application(client=False), r"app\.cleanup_ctx\.append\(rocket\.cleanup_ctx\)"),
        (lambda: application(cookie=False), r"add_session_cookie\(app\)"),
    ],
    ids=["client", "cookie"],
)
async def test_what_is_missing_is_named(app: object, advice: str) -> None:
    """If the client or cookie was not added to the application, the error says how to add it."""
    errors: list[UsageError] = []

    @web.middleware
    async def catching(request: web.Request, handler: object) -> web.StreamResponse:
        try:
            return await handler(request)  # type: ignore[operator,no-any-return]
        except UsageError as error:
            errors.append(error)
            return web.Response()

    made: web.Application = app()  # type: ignore[operator]
    made.middlewares.append(catching)
    async with served(made) as browser:
        await browser.get("/")

    [error] = errors
    assert re.search(advice, str(error))


def test_a_cookies_name_is_checked() -> None:
    """If the name cannot be a cookie's name, `add_session_cookie` raises `ConfigurationError`."""
    with pytest.raises(ConfigurationError, match="cookie"):
        add_session_cookie(web.Application(), name="a b")
