"""If input is hostile, it is accepted, or refused with one of the package's errors; accepted events can be sent.

`tests/fuzz` contains the functions under test and the cases; `nox -s fuzz` lets a fuzzer find more cases, and measures
time and memory.
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
    """Return the input with which the function under test called `name` reads `text`."""
    return PREFIXES.get(name, [b""])[0] + text


@pytest.mark.parametrize("name", READING)
def test_small_cases(name: str) -> None:
    """If a small hostile value is anywhere in an event, the event is accepted, or refused with a package error."""
    for case, text in SMALL.items():
        fed(TARGETS[name], as_read(name, text), case)


@pytest.mark.parametrize("name", READING)
def test_large_cases(name: str) -> None:
    """If a large hostile text is read, the text is accepted, or refused with an error of the package."""
    for case, made in LARGE.items():
        # For a base URL the text is shorter: percent-encoding lengthens it, and the length of a URL is limited.
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
    """If input is huge, such as a million digits or 100,000 levels, it is accepted, or refused with a package error."""
    TARGETS["decode"](LARGE[case](size))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
@settings(PROPERTY, max_examples=most(40))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    """If a function under test gets arbitrary bytes, it accepts them, or refuses them with an error of the package."""
    TARGETS[name](data)


def fed(target: Target, data: bytes, note: str) -> None:
    """Call a function under test with an input; if the function raises, add the input's name to the error."""
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
    """If input is read, the memory used is at most proportional to the input's size, also for compressed input."""
    text = LARGE[case](300_000)
    tracemalloc.start()
    with suppress(EventValidationError):
        DOORS[door][1](text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak <= MEMORY * len(text) + SLACK


def test_seeds() -> None:
    """If the fuzzer starts, it has start values for every function; those for `decode` contain every event type."""
    started = seeds()

    assert TARGETS.keys() == started.keys()
    assert all(any(b'{"%b":' % name.encode() in seed for seed in started["decode"]) for name in EVENT_TYPES)
