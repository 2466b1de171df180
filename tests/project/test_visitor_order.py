"""The benchmark's judge counts each overlap and each wrong order of a faulty client, and none of a correct client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from acceptance.faults import testbed
from acceptance.support import faulty_server
from acceptance.support.fault import KEY, PARTNER, Conditions, Fault
from benchmarks import pools, queues, visitors
from benchmarks.sections import order
from benchmarks.support import judge, sink
from benchmarks.support.child_process import call
from benchmarks.support.judge import QUIET, Exchange
from benchmarks.support.meters import LagMeter
from benchmarks.support.visitor_order import Order, Overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acceptance.support.fault import Report
    from benchmarks.support.judge import Judge, Verdict
    from benchmarks.support.visitor_order import Numbered

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(sys.platform != "linux", reason="the judge asks Linux whether a connection is closed"),
]

A, B = f"{QUIET}a", f"{QUIET}b"
"""Ids of two quiet visitors: the judge reports when each event of a quiet visitor arrived."""


# --- the rules --------------------------------------------------------------------------------------------------------


def test_a_request_before_the_answer_overlaps() -> None:
    """If a request begins before an answer to its visitor, it overlaps; another visitor's request does not."""
    overlaps = Overlaps()

    overlaps.begin(0.0, [A])
    overlaps.begin(1.0, [B])
    overlaps.begin(2.0, [A, B])

    assert overlaps.count == 1


def test_a_request_after_the_answer_does_not_overlap() -> None:
    """If a request begins after the answer to the previous request of its visitor, no overlap is counted."""
    overlaps = Overlaps()

    overlaps.end(overlaps.begin(0.0, [A]), 1.0)
    overlaps.begin(2.0, [A])

    assert overlaps.count == 0


def test_the_first_bytes_count() -> None:
    """If a request's first bytes arrive before an answer and its last bytes after it, the request overlaps."""
    overlaps = Overlaps()

    overlaps.end(overlaps.begin(0.0, [A]), 2.0)
    overlaps.begin(1.0, [A])

    assert overlaps.count == 1


def test_a_request_whose_connection_is_closed_has_ended() -> None:
    """If the client has closed the connection of a request, a request of the same visitor does not overlap."""
    overlaps = Overlaps()

    overlaps.begin(0.0, [A, B], abandoned=lambda: True)
    overlaps.begin(1.0, [A])
    overlaps.begin(1.0, [B])

    assert overlaps.count == 0


@pytest.mark.parametrize(
    ("requests", "disordered"),
    [
        ([[(A, 1), (B, 2), (A, 3)], [(A, 4), (B, 5)]], set()),
        ([[(A, 2)], [(A, 1)]], {A}),
        ([[(A, 2), (A, 1)]], {A}),
        ([[(A, 1), (A, 3)], [(A, 2), (B, 4)]], {A}),
        ([[(A, 1), (A, 2), (A, 3)], [(A, 1), (A, 2), (A, 3)], [(A, 4)]], set()),
        ([[(A, 1), (A, 2), (A, 3)], [(A, 1), (A, 2)], [(A, 1)], [(A, 3)]], set()),
        ([[(A, 1), (A, 2)], [(A, 3)], [(A, 1), (A, 2)]], {A}),
        ([[(A, 1), (A, 2)], [(A, 2), (A, 1)]], {A}),
        ([[(A, 1), (B, 2)], [(B, 3)], [(A, 1), (B, 2)]], {B}),
    ],
    ids=[
        "in order",
        "new after a later one",
        "reversed in one request",
        "left out and sent later",
        "sent again",
        "sent again in parts",
        "sent again after a later request",
        "sent again in reverse",
        "one of two visitors",
    ],
)
def test_order(requests: Sequence[Sequence[Numbered]], disordered: set[str]) -> None:
    """If an event is recorded after a later event, its visitor is out of order; repeating a request is no fault."""
    found = Order()

    for request in requests:
        found.record(request)

    assert disordered == found.disordered


# --- the judge, over HTTP ---------------------------------------------------------------------------------------------


def raw_request(*events: Numbered) -> bytes:
    """Return the bytes of a request with a batch of these events."""
    fields = [{"view": {"sessionExternalId": visitor, "productId": number}} for visitor, number in events]
    body = json.dumps(fields).encode()
    target = f"/1.0/visitorEvents?partnerId={PARTNER}&apiKey={KEY}"
    return f"POST {target} HTTP/1.1\r\nHost: judge\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def sent(port: int, *events: Numbered) -> Iterator[socket.socket]:
    """Send a request over a connection of its own, which is closed after the block."""
    with socket.create_connection(("127.0.0.1", port), timeout=30.0) as connection:
        connection.sendall(raw_request(*events))
        yield connection


def answered(port: int, *events: Numbered) -> None:
    """Send a request and wait for its answer."""
    with sent(port, *events) as connection:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def after(server: Judge, events: int) -> Verdict:
    """Return the judge's verdict as soon as this number of events has arrived."""
    while len((verdict := server.verdict()).quiet) < events:
        pass
    return verdict


NEVER = 1000.0
"""Latency of a server whose answer no test waits for, in seconds."""


def test_the_judge_sees_a_planted_overlap() -> None:
    """If two requests of one visitor are in flight at once, the judge counts one overlap and no wrong order."""
    with judge.running(NEVER) as server, sent(server.port, (A, 1)):
        after(server, 1)
        with sent(server.port, (B, 2)), sent(server.port, (A, 3)):
            verdict = after(server, 3)

    assert (1, 0) == (verdict.overlaps, verdict.disordered)


def test_the_judge_sees_a_planted_fault_of_order() -> None:
    """If a later event is recorded first, its visitor is out of order; requests after answers do not overlap."""
    with judge.running(0.0) as server:
        answered(server.port, (A, 2), (B, 3))
        answered(server.port, (A, 1), (B, 4))
        verdict = server.verdict()

    assert (0, 1) == (verdict.overlaps, verdict.disordered)


def test_the_judge_times_requests() -> None:
    """If a request has an answer, the judge reports its number of events and its time in flight."""
    with judge.running(0.02) as server:
        answered(server.port, (A, 1), (B, 2))
        [exchange] = server.verdict().exchanges

    assert exchange.ended - exchange.began >= 0.02
    assert exchange.events == 2


def test_the_client_has_no_fault() -> None:
    """If our client sends under load, the judge finds no overlap and no wrong order, and each figure is measured."""
    with judge.running(0.05) as server:
        arguments: dict[str, Any] = {"port": server.port, "latency": 0.05, "visitor_count": 100, "seconds": 0.1}
        figures = call("benchmarks.sections.order:load", **arguments)
        verdict = server.verdict()
    row = order._row(0.05, 100, figures, verdict)

    assert (0, 0) == (row.overlaps, row.disordered)
    assert row.delivered > 0
    assert len(figures["quiet"]) == 20


# --- the faulty server ------------------------------------------------------------------------------------------------


def port_of(server: faulty_server.FaultyServer) -> int:
    """Return the port of a server."""
    return int(server.url.split(":")[2].split("/")[0])


async def report_after(server: faulty_server.FaultyServer, arrivals: int) -> Report:
    """Return the server's report as soon as this number of requests has arrived."""
    while len((report := await server.report()).arrivals) < arrivals:
        pass
    return report


async def test_the_faulty_server_sees_planted_faults() -> None:
    """If requests overlap and events are out of order, the row of the scenario has both counts, and fails."""
    async with faulty_server.running(Conditions(batch_latency=NEVER)) as server, LagMeter() as meter:
        bed = testbed.Testbed(server, meter)
        bed.open()
        with sent(port_of(server), ("someone", 1)):
            await report_after(server, 1)
            with sent(port_of(server), ("someone", 0)):
                await report_after(server, 2)
                await bed.close()
                row = await bed.row("planted")

    assert (1, 1) == (row.overlaps, row.out_of_order)
    assert "1 requests overlapped with another one of their visitors" in row.broken
    assert "events of 1 visitors out of order" in row.broken


async def test_a_request_sent_again_after_a_time_out_is_no_fault() -> None:
    """If a client closes the connection of a request without an answer and sends it again, no fault is counted."""
    async with faulty_server.running(Conditions(faults=(Fault("stall", record=True, times=1),))) as server:
        with sent(port_of(server), ("someone", 1)):
            await report_after(server, 1)
        await asyncio.to_thread(answered_again, port_of(server))
        report = await server.report()

    assert (0, 0) == (report.overlaps, report.out_of_order)


def answered_again(port: int) -> None:
    """Send the event number 1 and wait for its answer."""
    with sent(port, ("someone", 1)) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"


# --- what the tables are made of --------------------------------------------------------------------------------------


def test_the_busiest_visitor() -> None:
    """If there are 4,000 visitors, the busiest makes 0.13 % of the events, and all visitors together make 100 %."""
    parts = visitors.shares(4_000)

    assert 0.00125 < max(parts) < 0.00135
    assert sum(parts) == pytest.approx(1)


@pytest.mark.parametrize(
    ("latency", "count", "most"), [(0.1, 1, 5_000), (1.5, 1, 333), (5.0, 1, 100), (1.5, 4_000, 24_000)]
)
def test_the_possible_rate(latency: float, count: int, most: float) -> None:
    """If there is one visitor, only one batch per latency can be delivered; with many visitors, all events can."""
    assert most == pytest.approx(order.possible(latency, count), rel=0.01)


def test_requests_in_flight() -> None:
    """If requests overlap in a window, their mean and their largest number count only the window."""
    exchanges = [Exchange(0.0, 2.0, 1), Exchange(1.0, 3.0, 1), Exchange(3.0, 9.0, 1)]

    assert (1.25, 2) == order.in_flight(exchanges, 0.0, 4.0)


def test_both_queues_can_be_measured() -> None:
    """If the cost of both queues is measured, each round of each queue has a positive cost."""
    found = queues.cost(100, 1_000, 1)

    assert ["ordered", "plain"] == list(found)
    assert all(cost > 0 for costs in found.values() for cost in costs)


@pytest.mark.parametrize("way", pools.WAYS)
async def test_each_way_to_hold_connections_can_be_measured(way: str) -> None:
    """If the cost of a request is measured for each way to hold connections, all requests get answers."""
    with sink.running() as server:
        figures: dict[str, Any] = await pools.request_cost(server.port, way, 1, 0.1)
        received = server.take()

    assert figures["cpu"] > 0
    assert received["requests"] == received["events"] / 500 == 31
