"""The order of each visitor's events, as the emulator judges it over real HTTP."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from retailrocket_async.emulator import OrderViolation, RunningEmulator, Settings, create_app, running_emulator
from retailrocket_async.emulator._order import OpenRequest, VisitorOrder, spans_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
NEVER = 600.0  # seconds that no test waits for


def view(second: int | None = None, visitor: str | None = "anna", **more: object) -> dict[str, Any]:
    """Return the envelope of a view whose timestamp has these seconds; None omits the timestamp or the visitor."""
    fields: dict[str, Any] = {"productId": 1, **more}
    if visitor is not None:
        fields["sessionExternalId"] = visitor
    if second is not None:
        fields["timestamp"] = f"2026-01-01T12:00:{second:02}+00:00"
    return {"view": fields}


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop run until `holds` returns True; fail after 60 s."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - the emulator has no event to wait for
            await asyncio.sleep(0)


class Api:
    """An emulator and an HTTP client for it."""

    def __init__(self, emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
        self.emulator = emulator
        self.client = client

    async def post(self, *envelopes: dict[str, Any]) -> int:
        """Post a batch of these envelopes; return the status of the answer."""
        return (await self.client.post("visitorEvents", json=list(envelopes))).status_code

    async def begin(self, *envelopes: dict[str, Any]) -> asyncio.Task[int]:
        """Begin to post a batch, and return when the emulator has received the body."""
        before = len(self.emulator.requests())
        task = asyncio.create_task(self.post(*envelopes))
        await until(lambda: len(found := self.emulator.requests()) > before and found[-1].body)
        return task

    async def leave(self, *tasks: asyncio.Task[int]) -> None:
        """Disconnect the clients of pending requests, and wait until the emulator has noticed."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: self.stats["in_flight"] == 0)

    @property
    def stats(self) -> dict[str, Any]:
        """Return the emulator's counters."""
        return self.emulator.stats()

    @property
    def found(self) -> tuple[int, int]:
        """Return the emulator's counts of overlapping requests and of timestamps that run backwards."""
        return self.stats["overlaps"], self.stats["backward_steps"]


@asynccontextmanager
async def api(**settings: Any) -> AsyncIterator[Api]:
    """Run an emulator that does not limit the number of requests."""
    async with (
        running_emulator(Settings(limit=None, **settings)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, timeout=NEVER, trust_env=False) as client,
    ):
        yield Api(emulator, client)


async def test_an_overlap_is_found() -> None:
    """If a visitor's second request arrives before the first is answered, an overlap of the two is counted."""
    async with api(batch_latency=NEVER) as shop:
        tasks = [await shop.begin(view()), await shop.begin(view(visitor="boris")), await shop.begin(view())]
        [violation] = shop.emulator.violations()
        first, _, third = shop.emulator.requests()
        await shop.leave(*tasks)

    assert OrderViolation(1, "overlap", "anna", 3, third.time, 1, first.time) == violation
    assert (1, 0) == shop.found


async def test_one_request_after_the_other_is_no_overlap() -> None:
    """If a visitor's second request arrives after the first is answered, no overlap is counted."""
    async with api(batch_latency=0.01) as shop:
        statuses = [await shop.post(view(second)) for second in range(3)]

    assert ([200] * 3, (0, 0)) == (statuses, shop.found)


async def test_requests_sent_together_overlap_even_if_they_are_answered_at_once() -> None:
    """If two requests arrive together, they overlap although the first is answered before the second is read."""
    async with api() as shop:
        connections = [await asyncio.open_connection("127.0.0.1", httpx.URL(shop.emulator.url).port) for _ in range(2)]
        for _, writer in connections:
            writer.write(raw(view()))
        answers = [await asyncio.wait_for(reader.readline(), 60) for reader, _ in connections]
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()

    assert ([b"HTTP/1.1 200 OK\r\n"] * 2, (1, 0)) == (answers, shop.found)


def raw(*envelopes: dict[str, Any]) -> bytes:
    """Return the bytes of a request with a batch of these envelopes."""
    body = orjson.dumps(envelopes)
    head = b"POST /1.0/visitorEvents?apiKey=dev-api-key&partnerId=dev-partner HTTP/1.1\r\nHost: e\r\n"
    return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_a_pipelined_request_overlaps() -> None:
    """If a client writes two requests to one connection without waiting for an answer, they overlap."""
    async with api() as shop:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.emulator.url).port)
        writer.write(raw(view()) * 2)
        for _ in range(2):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), 60)
        writer.close()
        await writer.wait_closed()

    assert (1, 0) == shop.found


async def test_a_request_is_under_way_from_its_head_on() -> None:
    """If a request's head arrives before, and its body after, another request is answered, the two overlap."""
    head, _, body = raw(view()).partition(b"\r\n\r\n")
    async with api() as shop:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.emulator.url).port)
        writer.write(head + b"\r\n\r\n")
        await until(lambda: shop.stats["in_flight"])
        await shop.post(view())
        writer.write(body)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), 60)
        writer.close()
        await writer.wait_closed()
        [violation] = shop.emulator.violations()

    assert ("overlap", 1, 2) == (violation.kind, violation.request, violation.other)


async def test_a_request_ends_when_its_client_leaves() -> None:
    """If a client leaves before the answer, its request ends at once, and its retry does not count as an overlap."""
    async with api(batch_latency=NEVER) as shop:
        await shop.leave(await shop.begin(view(1), view(2)))
        retry = await shop.begin(view(1), view(2))
        statuses = shop.stats["statuses"]
        await shop.leave(retry)

    assert ({"none": 1}, (0, 0), 4) == (statuses, shop.found, shop.stats["total_events"])


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "close_before", "close_after", "truncate", "garbage"])
async def test_a_retry_after_a_broken_connection_is_in_order(kind: Any) -> None:
    """If the emulator breaks the connection, the client may send the same events again, and then later ones."""
    async with api() as shop:
        await shop.post(view(1))
        shop.emulator.fail_with(kind)
        with pytest.raises(httpx.TransportError):
            await shop.post(view(2), view(5))
        statuses = [await shop.post(view(2), view(5)), await shop.post(view(6))]

    assert ([200, 200], (0, 0)) == (statuses, shop.found)


@pytest.mark.parametrize("facts", [{"status": 503}, {"status": 503, "record": True}, {"status": 429}])
async def test_a_retry_after_an_error_is_in_order(facts: dict[str, Any]) -> None:
    """If a request is answered with an error, recorded or not, the client may send the same events again."""
    async with api() as shop:
        shop.emulator.fail_with("status", **facts)
        statuses = [await shop.post(view(1), view(2)) for _ in range(2)]

    assert ([facts["status"], 200], (0, 0)) == (statuses, shop.found)


@pytest.mark.parametrize("record", [None, True])
async def test_a_request_with_a_fault_is_under_way(record: bool | None) -> None:  # noqa: FBT001
    """If a fault withholds the answer, the client still waits, so another request of the visitor overlaps."""
    async with api() as shop:
        shop.emulator.fail_with("stall", record=record)
        stalled = await shop.begin(view(3))
        await shop.post(view(4))
        await shop.leave(stalled)

    assert (1, 0) == shop.found


async def test_requests_that_a_fault_breaks_together_overlap() -> None:
    """If two requests arrive together, and a fault breaks the first connection at once, the two overlap."""
    async with api() as shop:
        shop.emulator.fail_with("close_after")
        connections = [await asyncio.open_connection("127.0.0.1", httpx.URL(shop.emulator.url).port) for _ in range(2)]
        for _, writer in connections:
            writer.write(raw(view()))
        await asyncio.wait_for(connections[1][0].readuntil(b"\r\n\r\n{}"), 60)
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()

    assert (1, 0) == shop.found


async def test_a_request_that_a_fault_delays_may_be_recorded_after_its_retry() -> None:
    """If the client gives up before a delayed request is recorded, the late recording counts as no violation."""
    async with api() as shop:
        shop.emulator.fail_with("latency", seconds=0.2)
        given_up = await shop.begin(view(1))
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        statuses = [await shop.post(view(1)), await shop.post(view(2))]
        await until(lambda: shop.stats["total_events"] == 3)

    assert ([200, 200], (0, 0)) == (statuses, shop.found)


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_request_over_the_limit_is_under_way(limit: int | None) -> None:
    """If a visitor's second request overlaps, the overlap is counted even if the limit refuses the request."""
    async with api(batch_latency=NEVER) as shop:
        shop.emulator.configure(limit=limit)
        tasks = [await shop.begin(view()), await shop.begin(view())]
        found = shop.found
        await shop.leave(*tasks)

    assert (1, 0) == found


async def test_a_request_that_the_api_would_not_read_is_not_judged() -> None:
    """If the key is wrong, the request overlaps no other request, and its timestamps are not remembered."""
    async with api(batch_latency=NEVER) as shop:
        shop.client.params = shop.client.params.set("apiKey", "wrong")
        wrong = await shop.begin(view())
        shop.client.params = shop.client.params.set("apiKey", "dev-api-key")
        right = await shop.begin(view())
        found = shop.found
        await shop.leave(wrong, right)

    assert (0, 0) == found


async def test_a_refused_batch_is_under_way() -> None:
    """If a batch is refused for one bad event, another request of its visitors before the answer overlaps."""
    async with api(batch_latency=NEVER) as shop:
        tasks = [await shop.begin(view(), {"view": {}}, {"view": 1}, view(visitor="")), await shop.begin(view())]
        found = shop.found
        await shop.leave(*tasks)

    assert (1, 0) == found


async def test_single_events_and_batches_are_judged_together() -> None:
    """If a visitor's events are sent in a batch and alone, overlaps and wrong order are found as between batches."""
    async with api() as shop:
        shop.emulator.configure(batch_latency=NEVER)
        pending = await shop.begin(view(5))
        response = await shop.client.post("view", json=view(4)["view"])
        await shop.leave(pending)

    assert (200, (1, 1)) == (response.status_code, shop.found)


async def test_events_without_a_visitor_are_ignored() -> None:
    """If events have no visitor, or none that the API accepts, requests with them never overlap."""
    async with api(batch_latency=NEVER, allow_unknown_events=True) as shop:
        odd = [{"wish": {"sessionExternalId": name, "timestamp": 7}} for name in (None, "", 7, ["a"], "x" * 51)]
        tasks = [await shop.begin(*odd, {"wish": {}}) for _ in range(2)]
        found, events = shop.found, shop.stats["total_events"]
        await shop.leave(*tasks)

    assert ((0, 0), 12) == (found, events)


async def test_timestamps_that_run_backward_are_found() -> None:
    """If a later request has an older event of a visitor, a ``backward`` violation with both times is listed."""
    async with api() as shop:
        statuses = [
            await shop.post(view(20), view(9, "boris")),
            await shop.post(view(30), view(10)),
            await shop.post(view(30)),
        ]
        [violation] = shop.emulator.violations()
        first, second, _ = shop.emulator.requests()

    assert [200, 200, 200] == statuses
    noon = 1767268800.0
    stamps = (noon + 10, noon + 20)
    assert OrderViolation(1, "backward", "anna", 2, second.time, 1, first.time, *stamps) == violation


@pytest.mark.parametrize(
    ("earlier", "later", "steps"),
    [
        ([view(5)], [view(5)], 0),
        ([view(5), view(3)], [view(5)], 0),
        ([view(5), view(3)], [view(4)], 1),
        ([view(3)], [view(5), view(4)], 0),
        ([view(3)], [view(5), view(2)], 1),
        ([view(5)], [view()], 0),
        ([view(5), view()], [view(4)], 1),
        ([view()], [view(5)], 0),
        ([view(5)], [view(4, "boris")], 0),
        ([view(5), view(5, "boris")], [view(4), view(4, "boris")], 2),
        ([view(timestamp="2026-01-01T12:00:00+03:00")], [view(timestamp="2026-01-01T09:00:00Z")], 0),
        ([view(timestamp="2026-01-01T12:00:00+03:00")], [view(timestamp="2026-01-01T08:59:59.999999Z")], 1),
        ([view(timestamp="0001-01-01T00:00:00+14:00")], [view(timestamp="9999-12-31T23:59:59-14:00")], 0),
    ],
)
async def test_what_counts_as_a_backward_step(earlier: list[Any], later: list[Any], steps: int) -> None:
    """If an event is older than its visitor's newest earlier event, it is a violation; equal times are not."""
    async with api() as shop:
        statuses = [await shop.post(*earlier), await shop.post(*later)]

    assert ([200, 200], (0, steps)) == (statuses, shop.found)


async def test_timestamps_of_unknown_events() -> None:
    """If an event of an unknown type has an invalid timestamp, or no time zone, the timestamp is not compared."""
    stamps = ["2026-01-01T12:00:00", "soon", 5, None, ["2026"]]
    async with api(allow_unknown_events=True) as shop:
        await shop.post(view(5))
        statuses = [await shop.post({"wish": view(timestamp=stamp)["view"]}) for stamp in stamps]

    assert ([200] * 5, (0, 0)) == (statuses, shop.found)


async def test_a_strict_emulator_refuses_overlaps() -> None:
    """If `strict_order` is set, an overlapping request gets a 409, and its events are not recorded."""
    async with api(batch_latency=NEVER, strict_order=True) as shop:
        first = await shop.begin(view(1))
        second = await shop.begin(view(2), view(2, "boris"))
        [refused] = shop.emulator.refused()
        shop.emulator.configure(batch_latency=0)
        third = await shop.post(view(3))
        await shop.leave(first, second)

    assert ["visitor anna: request #1 with events of this visitor is under way"] == refused.reasons
    assert (409, 1, 2) == (third, shop.stats["total_events"], shop.found[0])


async def test_a_strict_emulator_refuses_backward_steps() -> None:
    """If `strict_order` is set, a request with too old events gets a 409; one in order is recorded."""
    async with api(strict_order=True) as shop:
        statuses = [
            await shop.post(view(5)),
            await shop.post(view(3)),
            await shop.post(view(4)),
            await shop.post(view(5)),
        ]
        listed = [violation.request for violation in shop.emulator.violations()]
        reasons = [record.reasons for record in shop.emulator.refused()]

    assert ([200, 409, 409, 200], [2, 3], (0, 2)) == (statuses, listed, shop.found)
    assert [f"visitor anna: an event is {older} s older than one of request #1" for older in (2, 1)] == [
        reason for [reason] in reasons
    ]
    assert (2, 2, {"200": 2, "409": 2}) == (
        shop.stats["total_events"],
        shop.stats["refused"],
        shop.stats["statuses"],
    )


async def test_a_strict_emulator_says_first_what_is_wrong_with_the_request_itself() -> None:
    """If a request with too old events is also malformed or hit by a fault, only the other cause counts."""
    async with api(strict_order=True) as shop:
        await shop.post(view(5))
        shop.emulator.fail_with("status", status=503)
        statuses = [await shop.post(view(3)), await shop.post(view(3), {"view": {}})]

    assert ([503, 400], (0, 0)) == (statuses, shop.found)


async def test_a_strict_emulator_refuses_what_a_fault_would_record() -> None:
    """If a fault would record a request that violates the order, the request is refused instead."""
    async with api(strict_order=True) as shop:
        await shop.post(view(5))
        shop.emulator.fail_with("latency", seconds=0.001)
        status = await shop.post(view(3))

    assert (409, 1, 1) == (status, shop.stats["refused"], shop.stats["total_events"])


async def test_the_control_side_lists_violations() -> None:
    """If `GET violations` is requested, the answer lists the last violations, oldest first; a reset clears the list."""
    async with api() as shop:
        for second in (9, 8, 7):
            await shop.post(view(second))
        control = f"{shop.emulator.control_url}violations"
        listed = (await shop.client.get(control, params={"limit": 1})).json()
        everything = [violation.as_dict() for violation in shop.emulator.violations()]
        wrong = await shop.client.get(control, params={"limit": "x"})
        shop.emulator.reset()
        after = (await shop.client.get(control)).json()
        status = await shop.post(view(6))

    assert (everything[1:], 2, 400, [], 200, (0, 0)) == (
        listed,
        len(everything),
        wrong.status_code,
        after,
        status,
        shop.found,
    )


async def test_a_request_from_before_a_reset_is_forgotten() -> None:
    """If a request is under way during a reset, it overlaps no later request, and its timestamps are forgotten."""
    async with api(batch_latency=NEVER) as shop:
        before = await shop.begin(view(9))
        shop.emulator.reset()
        shop.emulator.configure(batch_latency=0)
        status = await shop.post(view(5))
        await shop.leave(before)

    assert (200, (0, 0)) == (status, shop.found)


async def test_violations_are_judged_under_any_server() -> None:
    """If another ASGI server runs the application, violations of the order are found as well."""
    app = create_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://e/1.0/", params=KEYS) as client:
        for second in (9, 8):
            await client.post("visitorEvents", json=[view(second)])

    assert 1 == app.state.emulator.stats()["backward_steps"]


def passed(order: VisitorOrder, number: int, *envelopes: dict[str, Any]) -> OpenRequest:
    """Open, check and close a request that succeeds, without the network; return the request."""
    events = [pair for envelope in envelopes for pair in envelope.items()]
    request = OpenRequest((number, float(number)), float(number), spans_of(events), lambda: False)
    order.open(request)
    order.check(request)
    request.recorded = True
    order.close(request, number + 0.5, succeeded=True)
    return request


def test_memory_is_bounded() -> None:
    """If there are many visitors and violations, only `keep` visitors and 1,000 violations are remembered."""
    order = VisitorOrder(2)
    for number, visitor in enumerate(["anna", "boris", "anna", "clara"], 1):
        passed(order, number, view(50, visitor))
    passed(order, 5, view(40, "boris"))
    forgotten = order.total
    passed(order, 6, view(40, "clara"))
    for number in range(7, 1507):
        passed(order, number, view(30, "clara"))
    listed = order.violations()

    assert (0, 1501, 1000) == (forgotten, order.total, len(listed))
    assert ([1500, 1501], 1501) == ([one.number for one in order.violations(2)], listed[-1].number)


def test_reasons_are_bounded() -> None:
    """If a request violates the order of more than 1,000 visitors, `reasons` has 1,000 items and "... and more"."""
    order = VisitorOrder(5000)
    passed(order, 1, *[view(9, f"v{number}") for number in range(1001)])
    reasons = passed(order, 2, *[view(8, f"v{number}") for number in range(1001)]).reasons()

    assert (1001, "... and more") == (len(reasons), reasons[-1])


def test_remembered_visitors_cost_the_collector_nothing() -> None:
    """If thousands of visitors are remembered, the garbage collector need not check an object for each of them."""
    order = VisitorOrder(10_000)
    for number in range(100):
        passed(order, number, *[view(9, f"v{number}x{place}") for place in range(100)])
    # The first collection removes the inner tuples from the collector's list, the second removes the outer tuples.
    gc.collect()
    gc.collect()

    assert 0 == sum(gc.is_tracked(seen) for seen in order._visitors.values())
