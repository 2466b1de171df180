"""Hostile input: a value that is not an event is refused with our own error, and an accepted event can be sent.

`tests/fuzz` has the targets and the cases; `nox -s fuzz` lets a fuzzer find more, and measures time and memory.
"""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async import EVENT_TYPES, EventValidationError
from tests.fuzz.bounds import DOORS, MEMORY, SLACK
from tests.fuzz.cases import LARGE, SMALL
from tests.fuzz.seeds import PREFIXES, seeds
from tests.fuzz.targets import DRAWN, TARGETS
from tests.support.effort import most
from tests.support.strategies import PROPERTY

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

READING = sorted(TARGETS.keys() - DRAWN - {"serve"})


def as_read(name: str, text: bytes) -> bytes:
    """Return the bytes from which a target reads `text`."""
    return PREFIXES.get(name, [b""])[0] + text


@pytest.mark.parametrize("name", READING)
def test_small_cases(name: str) -> None:
    """Every hostile number, text, mark and key, at every place of an event, is either accepted or refused."""
    for case, text in SMALL.items():
        fed(TARGETS[name], as_read(name, text), case)


@pytest.mark.parametrize("name", READING)
def test_large_cases(name: str) -> None:
    """Every large hostile case is either accepted or refused."""
    for case, made in LARGE.items():
        # Percent-encoded, a URL of this length may exceed the bound.
        fed(TARGETS[name], as_read(name, made(3_000 if name == "base_url" else 12_000)), case)


@pytest.mark.parametrize(
    ("case", "size"),
    [
        ("digits for an id", 1_000_000),
        ("digits for an amount", 1_000_000),
        ("open lists", 100_000),
        ("open objects", 500_000),
        ("closed lists", 200_000),
        ("keys", 1_200_000),
        ("unknown fields", 1_200_000),
        ("phrase", 10_000_000),
        ("session", 10_000_000),
        ("name", 10_000_000),
        ("key", 10_000_000),
        ("one line", 10_000_000),
    ],
)
def test_huge_cases(case: str, size: int) -> None:
    """A million digits, a hundred thousand levels or keys, and ten megabytes of text are accepted or refused."""
    TARGETS["decode"](LARGE[case](size))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
@settings(PROPERTY, max_examples=most(40))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    """Arbitrary bytes are accepted or refused by every target."""
    TARGETS[name](data)


def fed(target: Target, data: bytes, note: str) -> None:
    """Call a target with an input, and name the input if it fails."""
    try:
        target(data)
    except BaseException as error:
        error.add_note(f"fed with: {note}")
        raise


@pytest.mark.parametrize(
    ("door", "case"),
    [
        ("decode", "empty lists"),
        ("decode", "phrase of escapes"),
        ("lines", "phrase"),
        ("file", "gzip of little"),
        ("judge", "numbers in a batch"),
        ("judge of ids", "texts for ids"),
    ],
)
def test_memory(door: str, case: str) -> None:
    """Input takes memory in proportion to its size, and compressed input no more."""
    text = LARGE[case](300_000)
    tracemalloc.start()
    with suppress(EventValidationError):
        DOORS[door][1](text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak <= MEMORY * len(text) + SLACK


def test_seeds() -> None:
    """The fuzzer starts from every event type, with bytes for every target."""
    started = seeds()

    assert TARGETS.keys() == started.keys()
    assert all(any(b'{"%b":' % name.encode() in seed for seed in started["decode"]) for name in EVENT_TYPES)
