"""Tests of docs/life-of-a-batch.md and docs/engine-states.md, and of the list of objects in docs/architecture.md."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

from retailrocket_async._delivery.circuit_breaker import TRANSITIONS, Signal
from retailrocket_async._delivery.flight import _NEXT
from tests.project.test_architecture import CORE, ORDER, part_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS.joinpath("life-of-a-batch.md").read_text("utf-8")
STATES = DOCS.joinpath("engine-states.md").read_text("utf-8")
ARCHITECTURE = DOCS.joinpath("architecture.md").read_text("utf-8")

# The module of each class of the core.
MODULE_OF = {
    node.name: module
    for module, source in CORE.items()
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef)
}

MOST_FUNCTIONS = 12


def section(page: str, heading: str) -> str:
    """Return the text below a heading of a page, up to the next heading."""
    return page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table without its head; the cells contain no back-ticks."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("`", "").strip("|").split("|")] for line in lines[2:]]


def functions(text: str) -> list[tuple[str, str]]:
    """Return the names of functions in a text, as pairs of class and method, in order."""
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", text)
    return [(name, attribute) for name, attribute in named if callable(member(name, attribute))]


def member(name: str, attribute: str) -> object:
    """Return a member of a class of the core; None if the class has no such member, or only its instances have it."""
    return getattr(getattr(importlib.import_module(MODULE_OF[name]), name), attribute, None)


def constructed() -> list[str]:
    """Return the classes of which `Dispatcher.__init__` makes an object, in the order in which it makes them."""
    tree = ast.parse(CORE["retailrocket_async._delivery.dispatcher"])
    [init] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    calls = [node for node in ast.walk(init) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    # If an object is made in the arguments of another call, it is made first, and its call ends first in the source.
    calls.sort(key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0))
    made = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    return [name for name in made if name in MODULE_OF]


def height(name: str) -> tuple[int, int]:
    """Return the rank of a class: the rank of its package, then the position of its object in the engine."""
    part = part_of(MODULE_OF[name])
    return ORDER.index(part), constructed().index(name) if part == "_delivery" else 0


def test_the_walk_exists() -> None:
    """Each step of the page's list begins with the name of an existing function, from `track` to the receipt."""
    steps = re.findall(r"^\d+\. `(\w+)\.(\w+)`", section(PAGE, "The walk"), re.MULTILINE)

    assert steps == functions(section(PAGE, "The walk"))
    assert ("AsyncTrackingClient", "track") == steps[0]
    assert ("Receipt", "__await__") == steps[-1]


def test_the_page_is_short() -> None:
    """The page has at most 60 lines and names at most 12 functions."""
    assert len(set(functions(PAGE))) <= MOST_FUNCTIONS
    assert len(PAGE.splitlines()) <= 60


def test_the_walk_goes_down() -> None:
    """Each function of the page belongs to the object of the previous function, or to one that was built earlier."""
    heights = [height(name) for name, _ in functions(section(PAGE, "The walk"))]

    assert heights == sorted(heights, reverse=True)


def test_a_way_back_up_is_noticed() -> None:
    """The rank of the client is above the pump's, the pump's above the runner's, and the receipt's is the lowest."""
    assert height("Receipt") < height("Runner") < height("Pump") < height("AsyncTrackingClient")


def test_the_states_of_a_flight() -> None:
    """The page's table of a flight's states has the transitions of the code."""
    text = section(STATES, "The states of a flight").split("\n\n| Who")[0]
    table = {state: set(re.findall(r"\w+", following)) for state, _, following in rows(text)}

    assert {state.name: {each.name for each in following} for state, following in _NEXT.items()} == table


def test_the_states_of_the_circuit_breaker() -> None:
    """The page's table of the circuit breaker's states has the transitions of the code."""
    text = section(STATES, "The states of the circuit breaker")
    signals = [signal.name for signal in Signal]
    table = {
        state: {signal: after for signal, after in zip(signals, cells, strict=True) if after != "–"}
        for state, *cells in rows(text)
    }

    assert "| State | " + " | ".join(f"`{signal}`" for signal in signals) + " |" in text
    assert {
        state.name: {signal.name: after.name for signal, after in after_signal.items()}
        for state, after_signal in TRANSITIONS.items()
    } == table


def test_the_owners_exist() -> None:
    """Each object that the page's table names as the owner of a number is a class of the core."""
    owners = [re.match(r"\w+", owner) for _, owner, _ in rows(section(STATES, "Which object owns which number"))]

    assert {owner[0] for owner in owners if owner is not None} - {"the"} <= MODULE_OF.keys()


def test_the_objects_of_the_engine() -> None:
    """The table of the engine's objects lists the objects that `Dispatcher.__init__` makes, in the order of making."""
    table = [name for _, name, _ in rows(section(ARCHITECTURE, "The objects of the engine"))]

    assert constructed() == table
