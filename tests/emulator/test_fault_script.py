"""Simulated faults as data: which values are valid, to which requests a fault applies, and how often."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
import pytest

from retailrocket_async.emulator import Fault, FaultScript

ALL = (
    "status",
    "latency",
    "stall",
    "reset_before",
    "reset_after",
    "close_before",
    "close_after",
    "close_idle",
    "truncate",
    "garbage",
)


def script(*faults: Fault, seed: int = 1) -> FaultScript:
    """Return a `FaultScript` that applies these faults in order."""
    made = FaultScript(Random(seed))
    made.add(*faults)
    return made


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"kind": "explode"},
        {"kind": None},
        {"kind": ["status"]},
        {"kind": "status", "colour": "red"},
        {"kind": "status", "status": 199},
        {"kind": "status", "status": 600},
        {"kind": "status", "status": "503"},
        {"kind": "status", "status": True},
        {"kind": "status", "retry_after": 2},
        {"kind": "status", "retry_after": "2\r\nX: y"},
        {"kind": "status", "location": "http://ё"},
        {"kind": "status", "body": b"no"},
        {"kind": "status", "body": "\ud800"},
        {"kind": "close_idle", "record": True},
        {"kind": "status", "times": 0},
        {"kind": "status", "times": 1.0},
        {"kind": "status", "seconds": -1},
        {"kind": "status", "seconds": float("inf")},
        {"kind": "status", "seconds": "1"},
        {"kind": "latency"},
        {"kind": "latency", "seconds": 1, "record": False},
        {"kind": "reset_before", "record": True},
        {"kind": "status", "record": 1},
        {"kind": "status", "path": 1},
        {"kind": "status", "contains": 1},
        {"kind": "status", "probability": 1.1},
        {"kind": "status", "probability": None},
        [],
        None,
    ],
)
def test_wrong_faults_are_refused_at_birth(facts: object) -> None:
    """If a fault has a wrong shape, type or range, `ValueError` is raised."""
    with pytest.raises(ValueError, match=r"must be|has no"):
        Fault.from_dict(facts)


@pytest.mark.parametrize("kind", ALL)
def test_faults_survive_a_round_trip(kind: str) -> None:
    """If a fault is converted to JSON and back, the result equals the fault."""
    fault = Fault.from_dict({"kind": kind, "seconds": 1, "times": None, "path": "/1.0/view", "retry_after": "2"})

    assert fault == Fault.from_dict(orjson.loads(orjson.dumps(fault.as_dict())))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"kind": "status"}, False),
        ({"kind": "status", "record": True}, True),
        ({"kind": "latency", "seconds": 1}, True),
        ({"kind": "reset_before"}, False),
        ({"kind": "reset_after"}, True),
        ({"kind": "close_before"}, False),
        ({"kind": "close_after"}, True),
        ({"kind": "close_idle"}, True),
        ({"kind": "stall"}, False),
        ({"kind": "stall", "record": True}, True),
        ({"kind": "truncate"}, True),
        ({"kind": "garbage"}, False),
    ],
)
def test_faults_know_whether_they_record(facts: dict[str, Any], expected: bool) -> None:  # noqa: FBT001
    """The fault's kind decides whether its request is recorded; for some kinds, the fault's `record` decides."""
    assert expected == Fault.from_dict(facts).records


def test_a_fault_strikes_as_often_as_told() -> None:
    """If a fault has `times`, it applies to this number of requests; after these, the next fault applies."""
    faults = script(Fault(kind="status", times=2), Fault(kind="stall"))
    struck = [faults.take("/1.0/view", b"") for _ in range(4)]

    assert ["status", "status", "stall", None] == [fault and fault.kind for fault in struck]


def test_a_fault_may_strike_for_ever() -> None:
    """If `times` is None, the fault applies to any number of requests."""
    faults = script(Fault(kind="status", times=None))

    assert all(faults.take("/1.0/view", b"") for _ in range(1000))


def test_a_fault_strikes_where_it_fits() -> None:
    """If a fault has a path or a text, it applies only to requests with this path or with this text in the body."""
    faults = script(Fault(kind="status", path="/1.0/visitorEvents"), Fault(kind="stall", contains="слон"))
    requests = [("/1.0/view", b"{}"), ("/1.0/view", '"слон"'.encode()), ("/1.0/visitorEvents", b"[]")]
    struck = [faults.take(path, body) for path, body in requests]

    assert [None, "stall", "status"] == [fault and fault.kind for fault in struck]


def test_chance_follows_the_seed() -> None:
    """If a fault has a probability, it applies to about this share of requests; the seed decides to which."""
    faults = [script(Fault(kind="status", times=None, probability=0.3), seed=7) for _ in range(2)]
    first, second = ([made.take("/", b"") is not None for _ in range(1000)] for made in faults)

    assert (True, True) == (first == second, 250 < sum(first) < 350)


@pytest.mark.parametrize(("probability", "expected"), [(0, None), (1, "status")])
def test_the_ends_of_chance_are_certain(probability: float, expected: str | None) -> None:
    """If the probability is 0, the fault never applies; if the probability is 1, the fault always applies."""
    fault = script(Fault(kind="status", probability=probability)).take("/", b"")

    assert expected == (fault and fault.kind)


def test_what_is_left_is_shown() -> None:
    """If faults are left, `pending` returns them, each with the number of requests to which it still applies."""
    faults = script(Fault(kind="status", times=3), Fault(kind="stall", times=None))
    faults.take("/", b"")
    shown = [(fault.kind, fault.times) for fault in faults.pending()]
    faults.clear()

    assert ([("status", 2), ("stall", None)], []) == (shown, faults.pending())
