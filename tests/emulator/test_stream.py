"""The stream that keeps the emulator's page up to date, the page's files, and browser requests that are refused."""

from __future__ import annotations

import asyncio
import json
import re
from graphlib import TopologicalSorter
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from starlette.requests import Request

from retailrocket_async.emulator import RunningEmulator, Settings, running_emulator
from retailrocket_async.emulator._origin import refusal
from retailrocket_async.emulator._stream import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
VIEW: dict[str, Any] = {"sessionExternalId": "s1", "productId": 123456}
FOLDER = resources.files("retailrocket_async.emulator") / "page"
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SCRIPTS = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir() if path.name.endswith(".js")}
PAGE = ["/", *(f"/_control/page/{path.name}" for path in FOLDER.iterdir() if path.name != "page.html")]


class Message(NamedTuple):
    """A message of the update stream."""

    id: str
    data: dict[str, Any]

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the requests in this message."""
        return [request["number"] for request in self.data["requests"]]


def parsed(block: bytes) -> Message | None:
    """Parse a block of the stream. Return its message, or None for a comment."""
    fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if line)
    if "data" not in fields:
        return None
    assert fields["event"] == "update"
    return Message(fields["id"], json.loads(fields["data"]))


async def blocks_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the blocks of a stream, which empty lines separate, however HTTP splits the bytes."""
    left = b""
    async for chunk in response.aiter_bytes():
        *whole, left = (left + chunk).split(b"\n\n")
        for block in whole:
            yield block


async def next_of(blocks: AsyncIterator[bytes]) -> Message:
    """Return the next message; fail after 10 s."""
    async with asyncio.timeout(10):
        async for block in blocks:
            if (message := parsed(block)) is not None:
                return message
    raise AssertionError("the stream ended")


@pytest.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    """Provide an emulator with a high limit."""
    async with running_emulator(Settings(limit=10_000)) as emulator:
        yield emulator


@pytest.fixture
async def client(emulator: RunningEmulator) -> AsyncIterator[httpx.AsyncClient]:
    """Provide an HTTP client for the emulator's API and for its control side."""
    async with httpx.AsyncClient(base_url=emulator.root, timeout=10, trust_env=False) as client:
        yield client


def arrive(emulator: RunningEmulator, body: bytes = b"[]", status: int = 200) -> None:
    """Record an answered request without using the network."""
    ledger = emulator.ledger
    record = ledger.open(time=1.0, method="POST", path="/1.0/view", query={}, content_type="application/json")
    ledger.read(record, body, len(body))
    if status == 200:
        ledger.accept(record, [("view", VIEW)], body)
    emulator.emulator.close(record, status)


def watching(emulator: RunningEmulator, last_id: str | None = None) -> AsyncIterator[bytes]:
    """Read the stream without the network. To simulate a slow reader, do not read from the iterator."""
    return stream(emulator.emulator, last_id, interval=0.001)


async def test_violations_are_told_as_they_are_found(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If requests violate the order, the stream sends each violation once; a reader that reconnects gets all again."""
    moments = [f"2026-01-01T12:00:{second:02}Z" for second in (9, 8, 7)]
    async with client.stream("GET", "/_control/stream") as response:
        blocks = blocks_of(response)
        first = await next_of(blocks)
        sent: list[int] = []
        for moment in moments:
            await client.post("/1.0/view", params=KEYS, json=VIEW | {"timestamp": moment})
            message = await next_of(blocks)
            sent += [violation["number"] for violation in message.data.get("violations", [])]
    async with client.stream("GET", "/_control/stream", headers={"Last-Event-ID": message.id}) as response:
        blocks = blocks_of(response)
        again = await next_of(blocks)
        emulator.reset()
        after = await next_of(blocks)

    listed = [violation.as_dict() for violation in emulator.violations()]
    assert (False, [1, 2], []) == ("violations" in first.data, sent, listed)
    assert [("backward", 2, 1), ("backward", 3, 1)] == [
        (one["kind"], one["request"], one["other"]) for one in again.data["violations"]
    ]
    assert (True, False) == (after.data["reset"], "violations" in after.data)
    assert 2 == message.data["stats"]["backward_steps"]


async def test_requests_are_told_as_they_end(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """The stream sends the emulator's state, then each request that ends, with body and reasons, but never the key."""
    async with client.stream("GET", "/_control/stream") as response:
        blocks = blocks_of(response)
        first = await next_of(blocks)
        await client.post("/1.0/view", params=KEYS, json=VIEW | {"productId": "x"})
        second = await next_of(blocks)
    [request] = second.data["requests"]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert (10_000, [], []) == (first.data["settings"]["limit"], first.data["faults"], first.data["requests"])
    assert (400, ["productId: must be an integer, not a string"], False) == (
        request["status"],
        request["reasons"],
        request["cut"],
    )
    assert json.loads(request["body"])["productId"] == "x"
    assert second.data["stats"]["refused"] == 1
    assert [1, 0] == second.data["rates"][0][1:]
    assert emulator.settings.api_key not in json.dumps([first.data, second.data])


@pytest.mark.parametrize("by", ["header", "parameter"])
async def test_a_stream_resumes(emulator: RunningEmulator, client: httpx.AsyncClient, by: str) -> None:
    """If a reader reconnects with the id of its last message, it gets each later request exactly once."""
    for _ in range(2):
        arrive(emulator)
    before = await next_of(watching(emulator))
    arrive(emulator)
    given: dict[str, Any] = (
        {"headers": {"Last-Event-ID": before.id}, "params": {"after": "0"}}
        if by == "header"
        else {"params": {"after": before.id}}
    )
    async with client.stream("GET", "/_control/stream", **given) as response:
        after = await next_of(blocks_of(response))

    assert ([1, 2], [3], False) == (before.numbers, after.numbers, "reset" in after.data)


@pytest.mark.parametrize("last_id", ["", "0", "another.1", "{run}.9", "{run}.x", "{run}." + "9" * 5000])
async def test_a_place_of_another_emulator(emulator: RunningEmulator, last_id: str) -> None:
    """If the id is from another emulator or wrong, the stream starts from the beginning and says so with `reset`."""
    arrive(emulator)
    message = await next_of(watching(emulator, last_id.format(run=emulator.emulator.feed.run)))

    assert ([1], True) == (message.numbers, message.data["reset"])


async def test_a_slow_reader_is_told_what_it_missed(emulator: RunningEmulator) -> None:
    """If a reader is slow, it gets the last 1,000 requests, and the number of requests that it has missed."""
    blocks = watching(emulator)
    await next_of(blocks)
    for _ in range(1234):
        arrive(emulator)
    messages = [await next_of(blocks) for _ in range(5)]

    assert [234, None, None, None, None] == [message.data.get("missed") for message in messages]
    assert list(range(235, 1235)) == [number for message in messages for number in message.numbers]


async def test_messages_are_bounded(emulator: RunningEmulator) -> None:
    """If many requests arrive, each message has at most 200 requests and 512 KiB of bodies; no request is lost."""
    blocks = watching(emulator)
    await next_of(blocks)
    for _ in range(3):
        arrive(emulator, b" " * 300_000)
    for _ in range(201):
        arrive(emulator)
    counts = [len((await next_of(blocks)).numbers) for _ in range(4)]

    assert [1, 1, 200, 2] == counts


@pytest.mark.parametrize(("size", "shown", "cut"), [(70_000, 70_000, False), (600_000, 65_536, True)])
async def test_a_long_body(emulator: RunningEmulator, size: int, shown: int, *, cut: bool) -> None:
    """If a body is longer than 512 KiB, it is cut and marked as cut."""
    arrive(emulator, b" " * size)
    [request] = (await next_of(watching(emulator))).data["requests"]

    assert (shown, cut) == (len(request["body"]), request["cut"])


async def test_changes_are_told(emulator: RunningEmulator) -> None:
    """If faults or settings change, or the emulator is reset, the stream sends the change immediately."""
    blocks = watching(emulator)
    arrive(emulator)
    await next_of(blocks)
    emulator.fail_with("status", times=2)
    faults = await next_of(blocks)
    emulator.configure(limit=7)
    settings = await next_of(blocks)
    emulator.reset()
    reset = await next_of(blocks)
    arrive(emulator)
    after = await next_of(blocks)

    assert [2] == [fault["times"] for fault in faults.data["faults"]]
    assert 7 == settings.data["settings"]["limit"]
    assert (True, [], [], 0) == (
        reset.data["reset"],
        reset.data["requests"],
        reset.data["faults"],
        reset.data["stats"]["requests"],
    )
    assert ([1], None, None) == (after.numbers, after.data.get("reset"), after.data.get("missed"))


async def test_a_quiet_stream_is_kept_alive(emulator: RunningEmulator) -> None:
    """If nothing happens, a comment is sent from time to time, so that a closed connection is noticed."""
    blocks = stream(emulator.emulator, interval=0.001, keep_alive=0.005)
    async with asyncio.timeout(10):
        seen = [await anext(blocks) for _ in range(4)]

    assert [b"retry: 1000\n\n", b": still here\n\n", b": still here\n\n"] == [seen[0], *seen[2:]]


async def test_what_is_no_text_is_told_as_text(emulator: RunningEmulator) -> None:
    """If a body is not UTF-8, the stream sends the body with replacement characters."""
    arrive(emulator, b"\xff{", status=400)
    [request] = (await next_of(watching(emulator))).data["requests"]

    assert "\ufffd{" == request["body"]


async def test_an_open_stream_does_not_hold_up_the_end() -> None:
    """If the emulator ends, open streams end and leave no task."""
    before = asyncio.all_tasks()
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        async with running_emulator() as emulator:
            url = f"{emulator.control_url}stream"
            responses = [await client.send(client.build_request("GET", url), stream=True) for _ in range(3)]
            during = asyncio.all_tasks() - before
        after = asyncio.all_tasks() - before
        for response in responses:
            await response.aclose()

    assert (True, set()) == (len(during) >= 3, after)


async def test_a_reader_that_leaves_is_let_go(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If the reader closes the connection, the stream ends and leaves no task."""
    before = asyncio.all_tasks()
    async with client.stream("GET", "/_control/stream") as response:
        await next_of(blocks_of(response))
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 - the server's task sets no event
            await asyncio.sleep(0.01)


async def test_rates_are_of_the_last_minute(emulator: RunningEmulator) -> None:
    """For each second of the last minute, the emulator counts all requests and the requests over the limit."""
    ledger = emulator.ledger
    for moment, status in [(5.0, 200), (70.0, 200), (70.9, 429), (71.0, 400), (3.0, 200)]:
        record = ledger.open(time=moment, method="POST", path="/1.0/view", query={}, content_type=None)
        emulator.emulator.close(record, status)
    record = ledger.open(time=72.0, method="GET", path="/", query={}, content_type=None)
    emulator.emulator.close(record, 404)

    assert [(70, 2, 1), (71, 1, 0)] == emulator.emulator.feed.rates()


@pytest.mark.parametrize("target", sorted(PAGE))
async def test_the_page_is_served_with_a_strict_policy(client: httpx.AsyncClient, target: str) -> None:
    """If a file of the page is requested, the answer has its type, and a security policy without other hosts."""
    response = await client.get(target)
    kind = TYPES.get(target.rpartition(".")[2], "text/html")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    sources = {name: value for name, value in policy.items() if name.endswith("-src")}

    assert (200, "nosniff") == (response.status_code, response.headers["x-content-type-options"])
    assert (kind, "no-cache") == (response.headers["content-type"].split(";")[0], response.headers["cache-control"])
    assert {"'none'", "'self'"} == set(sources.values())
    assert ("'none'", "'none'", "'script'") == (
        policy["default-src"],
        policy["frame-ancestors"],
        policy["require-trusted-types-for"],
    )


def test_the_page_has_nothing_of_elsewhere() -> None:
    """If the page's files are read, they name no other host, and the markup has no inline script or style."""
    texts = {name: (FOLDER / name).read_text("utf-8") for name in ("page.html", "page.css")} | SCRIPTS
    names_a_host = [
        name
        for name, text in texts.items()
        if "//" in text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    ]

    assert names_a_host == []
    assert [word for word in ("style=", "onclick=", "<style", "<script>") if word in texts["page.html"]] == []
    assert [
        (name, word)
        for name, text in SCRIPTS.items()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(")
        if word in text
    ] == []


def test_the_scripts_of_the_page_are_small_and_in_order() -> None:
    """If a script of the page is read, it has fewer than 250 lines; imports form no cycle and reach every script."""
    imports = {
        name: set(re.findall(r'^import .* from "\./(.+)";$', text, re.MULTILINE)) for name, text in SCRIPTS.items()
    }
    written = {name: len(re.findall(r"^import |\bimport\(", text, re.MULTILINE)) for name, text in SCRIPTS.items()}

    assert [name for name, text in SCRIPTS.items() if text.count("\n") >= 250] == []
    assert {name: len(names) for name, names in imports.items()} == written
    assert SCRIPTS.keys() == set(TopologicalSorter(imports).static_order())
    assert {"page.js"} == SCRIPTS.keys() - set().union(*imports.values())


async def test_the_control_folder_leads_to_the_page(client: httpx.AsyncClient) -> None:
    """If `/_control/` is requested, the answer redirects to the page; for an unknown file, the answer is 404."""
    redirect = await client.get("/_control/")
    missing = ["_page.py", "../_page.py", "..%2f_page.py", "page.html", "page", "%2e%2e", ""]
    statuses = {(await client.get(f"/_control/page/{name}")).status_code for name in missing}

    assert ("/", {404}) == (redirect.headers["location"], statuses)


async def test_the_page_takes_nothing_from_the_api(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If GET of `/` is requested, the page is returned, and nothing is recorded; other methods go to the API."""
    for target in PAGE:
        await client.get(target)
    untouched = emulator.stats()["requests"]
    statuses = [(await client.request(method, "/")).status_code for method in ("POST", "HEAD", "DELETE")]
    statuses.append((await client.get("/favicon.ico")).status_code)

    assert (0, [404] * 4, 4) == (untouched, statuses, emulator.stats()["refused"])


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost", "Host": "localhost"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
        {"Host": "[oops", "Origin": "http://[oops"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("method", "name"), [("POST", "reset"), ("POST", "faults"), ("DELETE", "faults"), ("PATCH", "settings")]
)
async def test_another_site_changes_nothing(
    emulator: RunningEmulator, client: httpx.AsyncClient, method: str, name: str, headers: dict[str, str]
) -> None:
    """If a browser sends a change from another site's page or to another host name, the change is refused."""
    emulator.fail_with("stall")
    before = emulator.settings
    response = await client.request(
        method, f"/_control/{name}", headers=headers, content=b"[]" if name == "faults" else b'{"limit": 1}'
    )

    assert (403, True) == (response.status_code, bool(response.json()["error"]))
    assert (1, before) == (len(emulator.faults.pending()), emulator.settings)


@pytest.mark.parametrize("target", ["stream", "events", "requests", "stats"])
async def test_another_name_sees_nothing(client: httpx.AsyncClient, target: str) -> None:
    """If a request for the control side has another host name, the answer is 403, so other sites can read nothing."""
    response = await client.get(f"/_control/{target}", headers={"Host": "evil.example"})

    assert 403 == response.status_code


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "{root}"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://behind-a-proxy.example"},
        {"Host": "localhost:8080", "Origin": "http://localhost:8080"},
        {"Host": "shop.localhost"},
        {"Host": "emulator:8080"},
        {"Host": "[::1]:8080"},
    ],
    ids=str,
)
async def test_its_own_page_may(emulator: RunningEmulator, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """If the emulator's own page, or a program that is no browser, sends a change, the change is accepted."""
    given = {name: value.format(root=emulator.root) for name, value in headers.items()}

    assert 200 == (await client.post("/_control/reset", headers=given)).status_code


def test_a_query_that_is_no_text_is_no_defect() -> None:
    """If a query is not UTF-8, the origin of the request is still checked."""
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/_control/reset",
        "query_string": b"\xff",
        "server": ("127.0.0.1", 8080),
    }
    judged = {
        origin: refusal(Request({**scope, "headers": [(b"host", b"localhost:8080"), (b"origin", origin)]}))
        for origin in (b"http://localhost:8080", b"http://elsewhere.test")
    }

    assert judged == {
        b"http://localhost:8080": None,
        b"http://elsewhere.test": "a page of another origin must not change anything here",
    }
