"""The ledger, which records requests and events, counts exactly and uses limited memory."""

from __future__ import annotations

import gc
import sys
from typing import Any

import orjson
import pytest

from retailrocket_async.emulator import Ledger, RequestRecord


def opened(ledger: Ledger, path: str = "/1.0/view") -> RequestRecord:
    """Record a new request, which has no answer yet, in the ledger. Return its record."""
    return ledger.open(time=1.0, method="POST", path=path, query={}, content_type="application/json")


def accepted(ledger: Ledger, *names: str, session: str = "s1") -> None:
    """Open a request with events of these names, accept the events and close the request."""
    record = opened(ledger)
    ledger.accept(record, [(name, {"sessionExternalId": session}) for name in names])
    ledger.close(record, 200)


def test_numbers_are_given_in_order() -> None:
    """If requests and events are recorded, both are numbered from 1; an event's number is unique in the ledger."""
    ledger = Ledger()
    accepted(ledger, "view", "search")
    accepted(ledger, "order")

    assert [(1, 1, "view"), (2, 1, "search"), (3, 2, "order")] == [
        (event.seq, event.request, event.name) for event in ledger.events()
    ]


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ({}, [1, 2, 3, 4]),
        ({"name": "view"}, [1, 3]),
        ({"session": "s2"}, [3, 4]),
        ({"name": "view", "session": "s2"}, [3]),
        ({"after": 2}, [3, 4]),
        ({"after": 99}, []),
        ({"limit": 2}, [1, 2]),
        ({"after": 1, "name": "view", "limit": 1}, [3]),
        ({"limit": 0}, []),
    ],
)
def test_events_are_filtered(query: dict[str, Any], seqs: list[int]) -> None:
    """If events are filtered by name, session or number, the oldest matching events are returned, up to the limit."""
    ledger = Ledger()
    accepted(ledger, "view", "search")
    accepted(ledger, "view", "order", session="s2")

    assert seqs == [event.seq for event in ledger.events(**query)]


def test_old_events_are_dropped_but_counted() -> None:
    """If there are more than `keep` events, the oldest are dropped, but still counted; numbers do not change."""
    ledger = Ledger(keep=3)
    for _ in range(5):
        accepted(ledger, "view", "search")
    stats = ledger.stats()

    assert ([8, 9, 10], [10], 10, {"view": 5, "search": 5}) == (
        [event.seq for event in ledger.events()],
        [event.seq for event in ledger.events(after=9)],
        stats["total_events"],
        stats["events"],
    )


def test_old_requests_are_dropped_but_counted() -> None:
    """If there are more than 1,000 requests or refusals, the oldest are dropped but still counted."""
    ledger = Ledger()
    for _ in range(1_200):
        record = opened(ledger)
        ledger.refuse(record, ["no"])
        ledger.close(record, 400)

    assert (1_000, 1_000, 201, 1_200, {"400": 1_200}) == (
        len(ledger.requests()),
        len(ledger.refused()),
        ledger.refused()[0].number,
        ledger.stats()["refused"],
        ledger.stats()["statuses"],
    )


def test_the_last_requests_are_found() -> None:
    """If `requests` gets a limit, it returns at most this number of requests: the newest, in order."""
    ledger = Ledger()
    for _ in range(5):
        accepted(ledger)

    assert ([4, 5], [], [1, 2, 3, 4, 5]) == (
        [record.number for record in ledger.requests(2)],
        ledger.requests(0),
        [record.number for record in ledger.requests(9)],
    )


def test_bodies_are_capped() -> None:
    """If a body is large, the record has its first 65,536 bytes and its exact size."""
    ledger = Ledger()
    record = opened(ledger)
    ledger.read(record, b"x" * 70_000, 80_000)

    assert (65_536, 80_000, 80_000) == (len(record.body), record.as_dict()["bytes"], ledger.stats()["bytes"])


def test_a_body_that_is_no_text_is_shown_all_the_same() -> None:
    """If a body is not UTF-8, the record shows the body with replacement characters."""
    ledger = Ledger()
    record = opened(ledger)
    ledger.read(record, b"\xff{}", 3)

    assert "\ufffd{}" == record.as_dict()["body"]


def test_an_open_request_is_in_flight() -> None:
    """If a request is open, it counts as in flight; if it was closed without an answer, it counts under "none"."""
    ledger = Ledger()
    opened(ledger)
    ledger.close(opened(ledger), None)
    stats = ledger.stats()

    assert (2, 1, {"none": 1}) == (stats["requests"], stats["in_flight"], stats["statuses"])


def test_what_was_open_at_a_reset_leaves_no_trace() -> None:
    """If a request was open when the ledger was cleared, the end of this request changes nothing in the ledger."""
    ledger = Ledger()
    stale = opened(ledger)
    ledger.clear()
    ledger.read(stale, b"{}", 2)
    ledger.accept(stale, [("view", {})])
    ledger.refuse(stale, ["no"])
    ledger.close(stale, 200)

    assert (Ledger().stats(), [], [], []) == (ledger.stats(), ledger.events(), ledger.requests(), ledger.refused())


def test_numbers_restart_after_a_reset() -> None:
    """If a ledger is cleared, its numbers and counters start again as in a new ledger."""
    ledger = Ledger()
    accepted(ledger, "view")
    ledger.clear()
    accepted(ledger, "view")

    assert (1, 1, 1, 1) == (
        ledger.events()[0].seq,
        ledger.requests()[0].number,
        ledger.total_events,
        ledger.total_requests,
    )


def test_events_are_held_as_the_body_they_came_in() -> None:
    """If events are recorded with their request's body, they are parsed again from the body when they are read."""
    ledger = Ledger(keep=2)
    batch = [{"search": {"sessionExternalId": "s1"}}, {"order": {"price": 1.5}}]
    ledger.accept(
        opened(ledger, "/1.0/visitorEvents"),
        [pair for envelope in batch for pair in envelope.items()],
        orjson.dumps(batch),
    )
    ledger.accept(opened(ledger), [("view", {"productId": 2**63 - 1})], b'{"productId": 9223372036854775807}')

    assert [(2, 1, "order", {"price": 1.5}), (3, 2, "view", {"productId": 2**63 - 1})] == [
        (event.seq, event.request, event.name, event.fields) for event in ledger.events()
    ]


@pytest.mark.parametrize(
    "query", [{"name": "view"}, {"session": "s1"}, {"name": "view", "session": "s1"}, {"session": "s1", "after": 1}]
)
def test_an_event_is_found_however_its_body_spells_it(query: dict[str, Any]) -> None:
    """If an event's name is only in the path, or its JSON has escapes, a filter still finds it."""
    ledger = Ledger()
    fields = {"sessionExternalId": "s1"}
    ledger.accept(opened(ledger, "/1.0/search"), [("search", {})], b"{}")
    ledger.accept(opened(ledger), [("view", fields)], b'{"sessionExternalId": "s1"}')
    ledger.accept(
        opened(ledger, "/1.0/visitorEvents"), [("view", fields)], rb'[{"\u0076iew": {"sessionExternalId": "\u00731"}}]'
    )

    assert [2, 3] == [event.seq for event in ledger.events(**query)]


@pytest.mark.parametrize("text", ["\ud800", '"', "\\"])
def test_a_filter_may_be_any_text(text: str) -> None:
    """If any text is used as a filter, no error is raised, and only matching events are found."""
    ledger = Ledger()
    ledger.accept(opened(ledger), [("view", {})], b"{}")

    assert ([], []) == (ledger.events(name=text), ledger.events(session=text))


def test_held_events_are_no_burden_to_the_garbage_collector() -> None:
    """If many events are recorded, the garbage collector tracks fewer objects than events."""
    ledger = Ledger()
    batch = [{"view": {"sessionExternalId": "s1", "productId": place}} for place in range(100)]
    body = orjson.dumps(batch)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        record = opened(ledger, "/1.0/visitorEvents")
        ledger.accept(record, [pair for envelope in batch for pair in envelope.items()], body)
        ledger.close(record, 200)
    gc.collect()
    more = len(gc.get_objects()) - before

    assert (10_000, True) == (ledger.total_events, more < 5_000)


def test_bodies_are_let_go_with_their_events() -> None:
    """If the last event of a body is dropped, the ledger no longer refers to the body."""
    ledger = Ledger(keep=3)
    batch = [{"view": {}}, {"search": {}}]
    body = orjson.dumps(batch)
    before = sys.getrefcount(body)
    for _ in range(10):
        ledger.accept(
            opened(ledger, "/1.0/visitorEvents"), [pair for envelope in batch for pair in envelope.items()], body
        )
    first = sys.getrefcount(body) - before
    ledger.accept(opened(ledger), [("view", {})], b"{}")
    then = sys.getrefcount(body) - before
    ledger.accept(opened(ledger), [("view", {})], b"{}")
    last = sys.getrefcount(body) - before
    seqs = [event.seq for event in ledger.events()]
    ledger.clear()

    assert (2, 1, 1, [20, 21, 22], 0) == (first, then, last, seqs, sys.getrefcount(body) - before)
