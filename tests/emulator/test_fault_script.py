"""Faults as data: their values, which requests they apply to, and how often."""

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
    """Make a script of *faults*."""
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
    """A fault of the wrong shape, type or range is refused."""
    with pytest.raises(ValueError, match=r"must be|has no"):
        Fault.from_dict(facts)


@pytest.mark.parametrize("kind", ALL)
def test_faults_survive_a_round_trip(kind: str) -> None:
    """A fault turned into data and back is the same fault."""
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
    """Each kind records the request or does not; for some kinds `record` decides."""
    assert expected == Fault.from_dict(facts).records


def test_a_fault_strikes_as_often_as_told() -> None:
    """A fault applies to `times` requests; after that the next fault of the script applies."""
    faults = script(Fault(kind="status", times=2), Fault(kind="stall"))
    struck = [faults.take("/1.0/view", b"") for _ in range(4)]

    assert ["status", "status", "stall", None] == [fault and fault.kind for fault in struck]


def test_a_fault_may_strike_for_ever() -> None:
    """With `times` None a fault applies to any number of requests."""
    faults = script(Fault(kind="status", times=None))

    assert all(faults.take("/1.0/view", b"") for _ in range(1000))


def test_a_fault_strikes_where_it_fits() -> None:
    """A fault with a path or a text does not apply to other requests."""
    faults = script(Fault(kind="status", path="/1.0/visitorEvents"), Fault(kind="stall", contains="слон"))
    requests = [("/1.0/view", b"{}"), ("/1.0/view", '"слон"'.encode()), ("/1.0/visitorEvents", b"[]")]
    struck = [faults.take(path, body) for path, body in requests]

    assert [None, "stall", "status"] == [fault and fault.kind for fault in struck]


def test_chance_follows_the_seed() -> None:
    """A fault with a probability applies about that often, and with the same seed to the same requests."""
    faults = [script(Fault(kind="status", times=None, probability=0.3), seed=7) for _ in range(2)]
    first, second = ([made.take("/", b"") is not None for _ in range(1000)] for made in faults)

    assert (True, True) == (first == second, 250 < sum(first) < 350)


@pytest.mark.parametrize(("probability", "expected"), [(0, None), (1, "status")])
def test_the_ends_of_chance_are_certain(probability: float, expected: str | None) -> None:
    """A fault of probability 0 never applies, and one of probability 1 always."""
    fault = script(Fault(kind="status", probability=probability)).take("/", b"")

    assert expected == (fault and fault.kind)


def test_what_is_left_is_shown() -> None:
    """`pending` returns the pending faults, with the number of requests left."""
    faults = script(Fault(kind="status", times=3), Fault(kind="stall", times=None))
    faults.take("/", b"")
    shown = [(fault.kind, fault.times) for fault in faults.pending()]
    faults.clear()

    assert ([("status", 2), ("stall", None)], []) == (shown, faults.pending())
