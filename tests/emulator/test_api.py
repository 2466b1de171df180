"""The emulator's API over real HTTP: which status a request gets, and which requests and events are recorded."""

from __future__ import annotations

import asyncio
import gc
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from retailrocket_async.emulator import RunningEmulator, Settings, create_app, running_emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
SESSION = "60842392e4881c65e6c5e423"
VIEW: dict[str, Any] = {"sessionExternalId": SESSION, "productId": 123456}
SEARCH: dict[str, Any] = {"sessionExternalId": "other", "searchPhrase": "подгузник"}

SINGLES: dict[str, dict[str, Any]] = {
    "view": VIEW,
    "groupView": {"sessionExternalId": SESSION, "groupId": 1, "productIds": [1, 2]},
    "addToBasket": VIEW,
    "order": VIEW | {"quantity": 3, "price": 1321.43, "transaction": "135243"},
    "categoryView": {"sessionExternalId": SESSION, "categoryId": 1},
    "search": SEARCH,
    "setContact": {"sessionExternalId": SESSION, "contactExternalId": "c1"},
    "recomBlockViewed": {"sessionExternalId": SESSION, "recomBlockId": "b"},
    "recomTap": VIEW | {"recomBlockId": "b"},
    "recomAddToBasket": VIEW | {"recomBlockId": "b"},
    "impressionContentViewed": {"sessionExternalId": SESSION, "impressionContentId": "i"},
    "impressionContentClicked": {"sessionExternalId": SESSION, "impressionContentId": "i"},
}


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop run until `holds` returns True, for at most 10 s."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the ledger has no event to wait for
            await asyncio.sleep(0)


@pytest.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    """Provide an emulator with the default settings, but without a limit."""
    async with running_emulator(Settings(limit=None)) as emulator:
        yield emulator


@pytest.fixture
async def client(emulator: RunningEmulator) -> AsyncIterator[httpx.AsyncClient]:
    """Provide an HTTP client for the emulator's API, with the right key and shop."""
    async with httpx.AsyncClient(base_url=emulator.url, params=KEYS, timeout=10, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("name", SINGLES)
async def test_every_event_has_its_endpoint(emulator: RunningEmulator, client: httpx.AsyncClient, name: str) -> None:
    """If a valid event is posted to its own endpoint, the answer is 200, and the event is recorded unchanged."""
    response = await client.post(name, json=SINGLES[name])

    assert (200, b"{}", [(1, 1, name, SINGLES[name])]) == (
        response.status_code,
        response.content,
        [(event.seq, event.request, event.name, event.fields) for event in emulator.events()],
    )


async def test_a_batch_is_recorded_in_order(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a batch is posted, its events are recorded one by one, in order."""
    response = await client.post("visitorEvents", json=[{name: event} for name, event in SINGLES.items()])

    assert (200, b"{}", list(SINGLES.items())) == (
        response.status_code,
        response.content,
        [(event.name, event.fields) for event in emulator.events()],
    )


async def test_a_batch_is_all_or_nothing(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If one event of a batch is bad, the whole batch is refused; the reasons are recorded, but not in the answer."""
    batch = [{"view": VIEW}, {"view": VIEW | {"productId": "1"}}, {"search": {}}]
    response = await client.post("visitorEvents", json=batch)

    assert (400, b"{}", [], 1) == (
        response.status_code,
        response.content,
        emulator.events(),
        emulator.stats()["refused"],
    )
    assert [
        "[1].view.productId: must be an integer, not a string",
        "[2].search.sessionExternalId: is missing",
        "[2].search.searchPhrase: is missing",
    ] == emulator.refused()[0].reasons


async def test_an_empty_batch_is_refused(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If an empty array is posted, the answer is 400."""
    response = await client.post("visitorEvents", json=[])

    assert (400, ["body: must not be empty"]) == (response.status_code, emulator.refused()[0].reasons)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/1.0/View", 404),
        ("/1.0/view/", 404),
        ("/1.0/", 404),
        ("/1.0", 404),
        ("/2.0/view", 404),
        ("/view", 404),
        ("/", 404),
        ("/1.0/vi%0Aew", 404),
        ("/1.0/stepOnMoon", 404),
    ],
)
async def test_unknown_paths_are_not_found(
    emulator: RunningEmulator, client: httpx.AsyncClient, path: str, status: int
) -> None:
    """If a path does not belong to the API, the answer is 404, and the request is recorded."""
    response = await client.post(emulator.url.removesuffix("/1.0/") + path, json=VIEW)

    assert (status, b"{}", [status]) == (
        response.status_code,
        response.content,
        [record.status for record in emulator.refused()],
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_the_method_is_post_always(emulator: RunningEmulator, client: httpx.AsyncClient, method: str) -> None:
    """If the method is not POST, the answer is 405, and the Allow header names POST."""
    response = await client.request(method, "view")

    assert (405, "POST", [f"the method must be POST, not {method}"]) == (
        response.status_code,
        response.headers["allow"],
        emulator.refused()[0].reasons,
    )


@pytest.mark.parametrize(
    ("query", "reasons"),
    [
        ("", ["apiKey is missing", "partnerId is missing"]),
        ("apiKey=dev-api-key", ["partnerId is missing"]),
        ("partnerId=dev-partner", ["apiKey is missing"]),
        ("apiKey=other&partnerId=dev-partner", ["apiKey is wrong"]),
        ("apiKey=dev-api-key&partnerId=other", ["partnerId is wrong"]),
        ("apiKey=&partnerId=dev-partner", ["apiKey is wrong"]),
        ("apikey=dev-api-key&partnerId=dev-partner", ["apiKey is missing"]),
        ("apiKey=dev-api-key&apiKey=dev-api-key&partnerId=dev-partner", ["apiKey is wrong"]),
    ],
)
async def test_both_keys_are_wanted(emulator: RunningEmulator, query: str, reasons: list[str]) -> None:
    """If the API key or the shop is missing, wrong or given twice, the answer is 401."""
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{emulator.url}view?{query}", json=VIEW)

    assert (401, b"{}", reasons) == (response.status_code, response.content, emulator.refused()[0].reasons)


async def test_a_forbidden_shop_is_refused() -> None:
    """If the setting `forbidden` is on, the answer to the right key is 403."""
    async with (
        running_emulator(Settings(forbidden=True)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, trust_env=False) as client,
    ):
        statuses = [(await client.post("view", params=params, json=VIEW)).status_code for params in (KEYS, {})]

    assert [403, 401] == statuses


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 400),
        ("application/jsonx", 400),
        ("application/x-www-form-urlencoded", 400),
        (None, 400),
    ],
)
async def test_the_content_type_is_json(
    emulator: RunningEmulator, client: httpx.AsyncClient, content_type: str | None, status: int
) -> None:
    """If the Content-Type is not JSON, the answer is 400."""
    headers = {} if content_type is None else {"content-type": content_type}
    response = await client.post("view", content=orjson.dumps(VIEW), headers=headers)

    assert (status, content_type) == (response.status_code, emulator.requests()[0].content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"view",
        b'[{"view": {}},]',
        b'{"sessionExternalId": "s", "productId": NaN}',
        b'{"sessionExternalId": "s", "productId": Infinity}',
        b'{"sessionExternalId": "\xff", "productId": 1}',
        b'\xef\xbb\xbf{"sessionExternalId": "s", "productId": 1}',
        b'{"sessionExternalId": "s", "productId": 1} {}',
    ],
)
async def test_the_body_is_json(emulator: RunningEmulator, client: httpx.AsyncClient, body: bytes) -> None:
    """If the body is not strict JSON in UTF-8, the answer is 400."""
    response = await client.post("view", content=body, headers={"content-type": "application/json"})

    assert (400, True) == (response.status_code, emulator.refused()[0].reasons[0].startswith("body: must be JSON: "))


async def test_a_long_body_is_refused() -> None:
    """If a body is larger than the maximum, the answer is 413, however the body is sent."""
    body = orjson.dumps(VIEW)

    async def chunks() -> AsyncIterator[bytes]:
        yield body
        yield b" "

    async with (
        running_emulator(Settings(max_body_bytes=len(body))) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        headers = {"content-type": "application/json"}
        contents = (body, body + b" ", chunks())
        statuses = [(await client.post("view", content=content, headers=headers)).status_code for content in contents]

    assert [200, 413, 413] == statuses


async def test_the_default_maximum_is_eight_mebibytes(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a body is larger than 8 MiB, the default maximum, the whole body is read, and the answer is 413."""
    headers = {"content-type": "application/json"}
    statuses = [
        (await client.post("view", content=b" " * size, headers=headers)).status_code
        for size in (8_388_608, 8_388_609, 20_000_000)
    ]

    assert ([400, 413, 413], 36_777_217) == (statuses, emulator.stats()["bytes"])


async def test_checks_come_in_order(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a request has several mistakes, the first check decides: path, method, key, access, limit, size, body."""
    emulator.configure(forbidden=True, limit=1, max_body_bytes=1)
    wrong = {"content": b"{", "headers": {"content-type": "text/plain"}}
    statuses = [
        (await client.get("nothing", params={"apiKey": ""})).status_code,
        (await client.get("view", params={"apiKey": ""})).status_code,
        (await client.post("view", params={"apiKey": ""})).status_code,
        (await client.post("view", **wrong)).status_code,  # type: ignore[arg-type]
    ]
    emulator.configure(forbidden=False)
    statuses += [(await client.post("view", content=b"{{")).status_code for _ in range(2)]

    assert [404, 405, 401, 403, 413, 429] == statuses


async def test_unknown_events_pass_if_allowed() -> None:
    """If `allow_unknown_events` is on, events with unknown names are accepted, alone and in a batch."""
    async with (
        running_emulator(Settings(allow_unknown_events=True)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        await client.post("stepOnMoon", json={"foot": "left"})
        await client.post("visitorEvents", json=[{"stepOnMoon": {"foot": "right"}}])
        await client.post("step-on-moon", json={})
        names = [event.name for event in emulator.events()]

    assert (["stepOnMoon", "stepOnMoon"], [404]) == (names, [record.status for record in emulator.refused()])


async def test_a_client_that_leaves_early_is_recorded(emulator: RunningEmulator) -> None:
    """If the client disconnects before the whole body has arrived, the request is recorded without a status."""
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.url).port)
    writer.write(b"POST /1.0/view HTTP/1.1\r\nHost: e\r\nContent-Length: 100\r\n\r\n{")
    await until(lambda: emulator.stats()["in_flight"])
    writer.close()
    await writer.wait_closed()
    await until(lambda: not emulator.stats()["in_flight"])

    assert ({"none": 1}, 1) == (emulator.stats()["statuses"], emulator.stats()["bytes"])


async def test_requests_are_recorded_without_the_key(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a request is recorded, the record contains everything but the key."""
    before = time()
    await client.post("view", json=VIEW, params=KEYS | {"trace": "1"})
    (record,) = emulator.requests()
    fields = record.as_dict()
    moment = fields.pop("time")

    assert {
        "number": 1,
        "method": "POST",
        "path": "/1.0/view",
        "query": {"partnerId": "dev-partner", "trace": "1"},
        "content_type": "application/json",
        "status": 200,
        "events": 1,
        "bytes": len(record.body),
        "body": record.body.decode(),
        "reasons": [],
        "fault": None,
    } == fields
    assert before - 1 <= moment <= time() + 1


async def test_answers_carry_the_date(client: httpx.AsyncClient) -> None:
    """If a request is answered, the answer has a Date header, which clients use to check their clocks."""
    response = await client.post("view", json=VIEW)
    age = time() - parsedate_to_datetime(response.headers["date"]).timestamp()

    assert -1 <= age <= 10


async def test_the_application_runs_on_any_server() -> None:
    """If `create_app` is called, any ASGI server can run the result, and `app.state.emulator` is the emulator."""
    app = create_app(Settings(api_key="k"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://e/1.0/") as client:
        response = await client.post("view", params=KEYS | {"apiKey": "k"}, json=VIEW)

    assert (200, 1) == (response.status_code, app.state.emulator.ledger.total_events)


async def test_recorded_events_are_no_burden_to_the_garbage_collector(
    emulator: RunningEmulator, client: httpx.AsyncClient
) -> None:
    """If ten thousand events are recorded, the garbage collector tracks fewer new objects than events."""
    batch = [{"view": VIEW}] * 1_000
    await client.post("visitorEvents", json=batch)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(10):
        await client.post("visitorEvents", json=batch)
    gc.collect()
    more = len(gc.get_objects()) - before

    assert (11_000, True) == (emulator.ledger.total_events, more < 5_000)
