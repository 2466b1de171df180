"""The package's errors: their class tree, their attributes, and the values that they hide."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest

import retailrocket_async
from retailrocket_async import (
    Abandoned,
    AuthenticationError,
    BufferFullError,
    ClientClosedError,
    ConfigurationError,
    DeliveryError,
    Dropped,
    DroppedError,
    EventValidationError,
    FlushTimeoutError,
    HandleTimeoutError,
    NoAnswerError,
    Outcome,
    Rejected,
    RetailRocketError,
    ServerError,
    UsageError,
    View,
    WrongLoopError,
    _errors,
)
from retailrocket_async._errors import REDACTED, brief, brief_names
from tests.support.ids import shown
from tests.support.strategies import HOSTILE

CLASSES: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(_errors).items()
    if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "retailrocket_async"
}


def drawn() -> dict[str, tuple[str, str | None]]:
    """Read the class tree in the docstring of `_errors`. Return each class's parent and its builtin base (or None)."""
    tree: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    for line in (_errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)(\w+Error)\b(?:.*\((\w+Error)\))?", line)
        if match is None:
            continue
        branch, name, builtin = match.groups()
        depth, rest = divmod(len(branch), 4)
        assert 0 == rest
        path[depth:] = [name]
        tree[name] = (path[-2] if depth else "Exception", builtin)
    return tree


def test_tree_is_as_drawn() -> None:
    """If an error class is defined, the docstring of `_errors` shows the class with its parent and its builtin base."""
    classes = {
        name: (
            cls.__bases__[0].__name__,
            cls.__bases__[1].__name__ if len(cls.__bases__) > 1 else None,
        )
        for name, cls in CLASSES.items()
    }

    assert classes == drawn()


def test_tree_is_public() -> None:
    """If an error class is defined, it can be imported from the package."""
    assert set(CLASSES) == {name for name in retailrocket_async.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("name", CLASSES)
def test_documented(name: str) -> None:
    """If an error class is defined, the first line of its docstring is a sentence."""
    assert (CLASSES[name].__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (ConfigurationError, ValueError),
        (EventValidationError, ValueError),
        (ClientClosedError, RuntimeError),
        (WrongLoopError, RuntimeError),
        (FlushTimeoutError, TimeoutError),
        (HandleTimeoutError, TimeoutError),
    ],
)
def test_builtin(cls: type[RetailRocketError], builtin: type[Exception]) -> None:
    """If an error has a builtin base such as `ValueError`, code that catches this base also catches the error."""
    assert issubclass(cls, (builtin, RetailRocketError))
    assert issubclass(cls, builtin)


@pytest.mark.parametrize(
    "cls", [ConfigurationError, ClientClosedError, WrongLoopError, BufferFullError, FlushTimeoutError]
)
def test_plain_error_travels(cls: type[RetailRocketError]) -> None:
    """If an error that has only a message is pickled and unpickled, its type and message are preserved."""
    error = pickle.loads(pickle.dumps(cls("say so")))

    assert (cls, "say so") == (type(error), str(error))


@pytest.mark.parametrize("trip", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_the_count_of_accepted_events_is_pickled(trip: Any) -> None:
    """If a `HandleTimeoutError` is copied or pickled, its number of accepted events is preserved."""
    other = trip(HandleTimeoutError("no room", 7))

    assert (HandleTimeoutError, "no room", 7) == (type(other), str(other), other.accepted)


# --- EventValidationError ---


def test_facts_of_a_broken_rule() -> None:
    """If `EventValidationError` is created, its arguments are its attributes, and it is a `UsageError`."""
    error = EventValidationError("view", "product_id", "must be an int", "7")

    assert ("view", "product_id", "must be an int", "7") == (error.event, error.field, error.rule, error.value)
    assert "view.product_id must be an int (got '7')" == str(error)
    assert isinstance(error, UsageError)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("view", "", "must be an object"), "view must be an object"),
        (("view", "email", "must be an address"), "view.email must be an address"),
        (("view", "email", "must be an address", REDACTED), "view.email must be an address"),
        (("view", "stock_id", "must be a str", None), "view.stock_id must be a str (got None)"),
    ],
)
def test_message_of_a_broken_rule(arguments: tuple[Any, ...], expected: str) -> None:
    """If the field is empty or the value is hidden, the message does not mention it; the value None is shown."""
    assert expected == str(EventValidationError(*arguments))


@pytest.mark.parametrize(
    "value", [REDACTED, None, "x", 7, [1, {"a": 2}], "x" * 1000], ids=lambda value: repr(value)[:20]
)
@pytest.mark.parametrize("trip", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_broken_rule_travels(trip: Any, value: Any) -> None:
    """If an `EventValidationError` is copied or pickled, its attributes are preserved; hidden values stay hidden."""
    error = EventValidationError("view", "product_id", "must be an int", value)
    other = trip(error)

    assert (type(error), str(error), error.args) == (type(other), str(other), other.args)
    assert vars(error) == vars(other)
    assert (value is REDACTED) == (other.value is REDACTED)


@pytest.mark.parametrize("trip", [lambda value: pickle.loads(pickle.dumps(value)), copy.copy, copy.deepcopy])
def test_redacted_is_one(trip: Any) -> None:
    """If `REDACTED` is copied or unpickled, the result is the same object; its repr shows no value."""
    assert trip(REDACTED) is REDACTED
    assert "<withheld>" == repr(REDACTED)


@pytest.mark.parametrize("name", HOSTILE)
def test_brief(name: str) -> None:
    """If `brief` gets any hostile value, alone or nested, the text that `brief` returns has at most 203 characters."""
    assert len(brief(HOSTILE[name])) <= 203
    assert len(brief([{"a": [HOSTILE[name]] * 9}] * 9)) <= 203


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("abc", "'abc'"),
        (7, "7"),
        (True, "True"),
        (None, "None"),
        (2**64, "18446744073709551616"),
        (10**400, "an int of 1329 bits"),
        (-(10**400), "an int of 1329 bits"),
        ("a\nb\x1b[31m\ud800", r"'a\nb\x1b[31m\ud800'"),
        ([1, [2, [3]]], "[1, [2, [...]]]"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_brief_value(value: Any, expected: str) -> None:
    """If a value is small, `brief` shows it whole and escapes control characters; a large value is cut."""
    assert expected == brief(value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["b", "a"], "'a', 'b'"),
        ("abcdefgh", "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'"),
        ("abcdefghij", "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', ..."),
        ([None, "a\n"], r"'a\n', None"),
    ],
)
def test_brief_names(names: Any, expected: str) -> None:
    """If `brief_names` gets any number of names, it returns at most eight names, in sorted order."""
    assert expected == brief_names(names)


# --- DeliveryError ---

FACTS: list[tuple[type[DeliveryError], Outcome]] = [
    (AuthenticationError, Rejected(status=401, attempts=1, elapsed=0.1)),
    (
        ServerError,
        Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503, attempts=5, elapsed=30.5),
    ),
    (NoAnswerError, Abandoned(reason="closed", maybe_recorded=False, failure="connect: ConnectError", attempts=2)),
    (DroppedError, Dropped(reason="overflow")),
]


@pytest.mark.parametrize(("cls", "outcome"), FACTS, ids=shown)
def test_facts_of_a_failed_delivery(cls: type[DeliveryError], outcome: Outcome) -> None:
    """If a `DeliveryError` is created, its attributes are the outcome and the values of the outcome's fields."""
    error = cls("it failed", outcome)
    expected = (outcome, outcome.status, outcome.attempts, outcome.elapsed, outcome.maybe_recorded)

    assert expected == (error.outcome, error.status, error.attempts, error.elapsed, error.maybe_recorded)
    assert "it failed" == str(error)


@pytest.mark.parametrize("trip", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize(("cls", "outcome"), FACTS, ids=shown)
def test_failed_delivery_travels(cls: type[DeliveryError], outcome: Outcome, trip: Any) -> None:
    """If a `DeliveryError` is copied or pickled, its type, message and attributes are preserved."""
    error = cls("it failed", outcome)
    other = trip(error)

    assert (cls, "it failed", vars(error)) == (type(other), str(other), vars(other))


def test_constructor_raises_it() -> None:
    """If an event breaks a rule, its constructor raises `EventValidationError` without a cause or context."""
    with pytest.raises(EventValidationError) as caught:
        View(session_external_id="a", product_id="1")  # type: ignore[arg-type]

    assert (None, None) == (caught.value.__cause__, caught.value.__context__)
