"""Public names report the public module from which they are imported, and tools can read their types."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import types
import typing
from typing import Any

import attrs
import cattrs
import pytest

import retailrocket_async
from retailrocket_async import CloseReport, Dropped, EventValidationError, SpoolStats, Stats, UndeliveredEvent
from tests.runtime.test_extras import public_modules

PUBLIC: dict[str, Any] = {
    f"{module}.{name}": getattr(importlib.import_module(module), name)
    for module in public_modules()
    for name in getattr(importlib.import_module(module), "__all__", ())
}
CLASSES = {path: thing for path, thing in PUBLIC.items() if isinstance(thing, type)}
FUNCTIONS = {path: thing for path, thing in PUBLIC.items() if isinstance(thing, types.FunctionType)}


@pytest.mark.parametrize("path", sorted({**CLASSES, **FUNCTIONS}))
def test_the_module_is_public(path: str) -> None:
    """The `__module__` of a public class or function is a public module from which it can be imported."""
    thing = PUBLIC[path]

    assert "._" not in thing.__module__
    assert thing is getattr(importlib.import_module(thing.__module__), thing.__name__)


@pytest.mark.parametrize("path", sorted({**CLASSES, **FUNCTIONS}))
def test_a_pickle_names_the_public_module(path: str) -> None:
    """A pickled public class or function names no private module, and unpickling returns the same object."""
    pickled = pickle.dumps(PUBLIC[path])

    assert b"._" not in pickled
    assert pickle.loads(pickled) is PUBLIC[path]


@pytest.mark.parametrize("path", sorted(CLASSES))
def test_type_hints(path: str) -> None:
    """`typing.get_type_hints` resolves the annotations of every public class."""
    hints = typing.get_type_hints(CLASSES[path])

    assert not [name for name, hint in hints.items() if isinstance(hint, str)]


@pytest.mark.parametrize("path", sorted(path for path, cls in CLASSES.items() if attrs.has(cls)))
def test_attrs_types(path: str) -> None:
    """`attrs.resolve_types` finds the type of each field of every public class."""
    fields = attrs.fields(attrs.resolve_types(CLASSES[path]))

    assert not [field.name for field in fields if isinstance(field.type, str)]


def test_cattrs() -> None:
    """If cattrs converts an outcome or statistics to plain values and back, the result equals the original."""
    dropped = UndeliveredEvent(event_name="view", envelope=b'{"view":{}}', outcome=Dropped(reason="closed"))
    converter = cattrs.Converter()

    assert converter.structure(converter.unstructure(dropped.outcome), Dropped) == dropped.outcome
    assert converter.structure(converter.unstructure(SpoolStats(events=3)), SpoolStats) == SpoolStats(events=3)
    assert converter.unstructure(CloseReport(stats=Stats(), undelivered=(dropped,), elapsed=1.0))["elapsed"] == 1.0


def test_a_record_keeps_no_private_module() -> None:
    """If a `CloseReport` is pickled, the pickle names only public modules, so later versions can read it."""
    dropped = UndeliveredEvent(event_name="view", envelope=b'{"view":{}}', outcome=Dropped(reason="closed"))
    report = CloseReport(stats=Stats(), undelivered=(dropped,), elapsed=1.0)

    assert b"retailrocket_async._" not in pickle.dumps(report)


def test_a_traceback_names_the_public_module() -> None:
    """A traceback shows an error under the public name by which it can be imported."""
    program = "import retailrocket_async; retailrocket_async.View(session_external_id='', product_id=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1].startswith("retailrocket_async.EventValidationError: ")
    assert EventValidationError.__module__ == retailrocket_async.__name__
