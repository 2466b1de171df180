"""The emulator's control side: HTTP requests under `/_control/` that show or change the emulator's state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retailrocket_async.emulator import RunningEmulator, Settings, running_emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
VIEW: dict[str, Any] = {"sessionExternalId": "s1", "productId": 123456}
SEARCH: dict[str, Any] = {"sessionExternalId": "s2", "searchPhrase": "слон"}


@pytest.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    """Provide an emulator with a high limit."""
    async with running_emulator(Settings(limit=1000, per=60)) as emulator:
        yield emulator


@pytest.fixture
async def client(emulator: RunningEmulator) -> AsyncIterator[httpx.AsyncClient]:
    """Provide an HTTP client for the emulator's API and for its control side, which needs no key."""
    root = emulator.url.removesuffix("1.0/")
    async with httpx.AsyncClient(base_url=root, timeout=10, trust_env=False) as client:
        yield client


async def post(client: httpx.AsyncClient, *envelopes: dict[str, Any]) -> int:
    """Post a batch. Return the status."""
    return (await client.post("1.0/visitorEvents", params=KEYS, json=list(envelopes))).status_code


async def test_stats_count_everything(client: httpx.AsyncClient) -> None:
    """If `GET stats` is requested, the answer has all counters, and the maximum number of requests in one window."""
    await post(client, {"view": VIEW}, {"view": VIEW}, {"search": SEARCH})
    await post(client, {"view": {}})
    await client.patch("_control/settings", json={"limit": 1})
    await post(client, {"view": VIEW})
    sent = (await client.get("_control/requests")).json()

    assert {
        "requests": 3,
        "in_flight": 0,
        "statuses": {"200": 1, "400": 1, "429": 1},
        "events": {"view": 2, "search": 1},
        "total_events": 3,
        "refused": 2,
        "bytes": sum(request["bytes"] for request in sent),
        "over_limit": 1,
        "worst_window": 3,
        "overlaps": 0,
        "backward_steps": 0,
    } == (await client.get("_control/stats")).json()


async def test_control_requests_are_not_counted(client: httpx.AsyncClient) -> None:
    """If a control request is made, it is neither recorded nor counted."""
    await client.get("_control/stats")
    await client.post("_control/reset")
    stats = (await client.get("_control/stats")).json()

    assert (0, 0) == (stats["requests"], stats["worst_window"])


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ({}, [1, 2, 3]),
        ({"name": "search"}, [2]),
        ({"session": "s1"}, [1, 3]),
        ({"after": 1}, [2, 3]),
        ({"after": 1, "limit": 1}, [2]),
    ],
)
async def test_events_are_filtered(client: httpx.AsyncClient, query: dict[str, Any], seqs: list[int]) -> None:
    """If `GET events` has a filter by name, session or number, the answer has only matching events, up to the limit."""
    await post(client, {"view": VIEW}, {"search": SEARCH}, {"view": VIEW})
    found = (await client.get("_control/events", params=query)).json()

    assert seqs == [event["seq"] for event in found]


async def test_an_event_is_shown_as_received(client: httpx.AsyncClient) -> None:
    """If an event is shown, the answer has its number, the number of its request, its name and its fields."""
    await post(client, {"search": SEARCH})

    assert [{"seq": 1, "request": 1, "name": "search", "fields": SEARCH}] == (
        await client.get("_control/events")
    ).json()


async def test_requests_and_refusals_are_shown(client: httpx.AsyncClient) -> None:
    """If `GET requests` or `GET refused` is requested, the answer lists requests, with reasons if refused."""
    await post(client, {"view": {}})
    await post(client, {"view": VIEW})
    (last,) = (await client.get("_control/requests", params={"limit": 1})).json()
    (refused,) = (await client.get("_control/refused", params={"limit": 5})).json()

    assert (2, [], 1, ["[0].view.sessionExternalId: is missing", "[0].view.productId: is missing"]) == (
        last["number"],
        last["reasons"],
        refused["number"],
        refused["reasons"],
    )


async def test_a_reset_forgets_but_keeps_the_settings(client: httpx.AsyncClient) -> None:
    """If `POST reset` is requested, records, counted requests and faults are deleted; the settings do not change."""
    await client.patch("_control/settings", json={"limit": 1})
    await post(client, {"view": VIEW})
    await client.post("_control/faults", json=[{"kind": "status"}])
    await client.post("_control/reset")
    faults = (await client.get("_control/faults")).json()
    statuses = [await post(client, {"view": VIEW}) for _ in range(2)]

    assert ([], [200, 429]) == (faults, statuses)


async def test_faults_are_added_shown_and_dropped(client: httpx.AsyncClient) -> None:
    """If faults are posted, shown or deleted, the list of faults changes accordingly."""
    added = await client.post("_control/faults", json=[{"kind": "status", "status": 500, "times": 2}])
    status = await post(client, {"view": VIEW})
    (left,) = (await client.get("_control/faults")).json()
    await client.delete("_control/faults")
    none = (await client.get("_control/faults")).json()

    assert (200, 500, ("status", 1), []) == (added.status_code, status, (left["kind"], left["times"]), none)


async def test_faults_are_added_all_or_none(client: httpx.AsyncClient) -> None:
    """If one of several faults is wrong, no fault is added."""
    response = await client.post("_control/faults", json=[{"kind": "status"}, {"kind": "explode"}])

    assert (400, []) == (response.status_code, (await client.get("_control/faults")).json())


async def test_the_key_can_be_rotated(client: httpx.AsyncClient) -> None:
    """If the key is changed, a request with the old key gets a 401, and no answer contains the key."""
    response = await client.patch("_control/settings", json={"api_key": "new"})
    statuses = [
        (await client.post("1.0/view", params=KEYS | {"apiKey": key}, json=VIEW)).status_code
        for key in ("dev-api-key", "new")
    ]

    assert ([401, 200], False, "dev-partner") == (
        statuses,
        "api_key" in response.json(),
        response.json()["partner_id"],
    )


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"forbidden": True}, 403), ({"max_body_bytes": 1}, 413), ({"latency": 0.01}, 200), ({"limit": None}, 200)],
)
async def test_settings_change_at_run_time(client: httpx.AsyncClient, changes: dict[str, Any], status: int) -> None:
    """If a setting is changed, the next request is handled with the new value."""
    await client.patch("_control/settings", json=changes)

    assert status == await post(client, {"view": VIEW})


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PATCH", "settings", b'{"limit": 0}'),
        ("PATCH", "settings", b'{"keep": 1}'),
        ("PATCH", "settings", b'{"self": 1}'),
        ("PATCH", "settings", b"[]"),
        ("PATCH", "settings", b"{"),
        ("POST", "faults", b"{}"),
        ("POST", "faults", b"[1]"),
        ("POST", "faults", b""),
        ("POST", "faults", b"[" * 1000 + b"]" * 1000),
        ("POST", "faults", b'[{"kind":%b}]' % (b"[" * 1000 + b"]" * 1000)),
        ("POST", "faults", b'[{"kind":"status","status":%b}]' % (b"[" * 1000 + b"]" * 1000)),
        ("PATCH", "settings", b'{"limit":%b}' % (b"[" * 1000 + b"]" * 1000)),
        ("GET", "events?limit=x", b""),
        ("GET", "events?after=-1", b""),
        ("GET", "requests?limit=1.5", b""),
        ("GET", "refused?limit=%D9%A1", b""),
    ],
)
async def test_nonsense_is_refused_with_a_word(
    client: httpx.AsyncClient, method: str, target: str, body: bytes
) -> None:
    """If a control request is invalid, the answer is 400 and contains the reason."""
    response = await client.request(method, f"_control/{target}", content=body)

    assert (400, True) == (response.status_code, bool(response.json()["error"]))


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", "reset", 405), ("POST", "stats", 405), ("DELETE", "settings", 405)]
)
async def test_control_methods_are_exact(client: httpx.AsyncClient, method: str, target: str, status: int) -> None:
    """If a path under `/_control/` is requested with a wrong method, the answer is 405."""
    assert status == (await client.request(method, f"_control/{target}")).status_code
