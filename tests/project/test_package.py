"""Tests of the package as a whole: its public names, its metadata, and rules for all tests."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from importlib import metadata, resources
from pathlib import Path

import pytest

import retailrocket_async

TESTS = Path(__file__).parents[1]
PUBLIC = {name: getattr(retailrocket_async, name) for name in retailrocket_async.__all__}
DOCUMENTABLE = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing) or inspect.isfunction(thing)}


def test_all_is_complete() -> None:
    """`__all__` contains every public name that can be imported from the package."""
    public = {
        name
        for name, thing in vars(retailrocket_async).items()
        if not name.startswith("_") and not isinstance(thing, types.ModuleType) and name != "annotations"
    }

    assert set(retailrocket_async.__all__) == public


def test_all_is_sorted() -> None:
    """`__all__` is sorted: first constants, then classes, then functions."""
    names = retailrocket_async.__all__

    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


@pytest.mark.parametrize("name", sorted(DOCUMENTABLE))
def test_public_names_are_documented(name: str) -> None:
    """Every public class and function has a docstring, and so has every public method and property that it defines."""
    thing = DOCUMENTABLE[name]
    members = vars(thing) if inspect.isclass(thing) else {}
    undocumented = [
        member
        for member, value in members.items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(value)
    ]

    assert inspect.getdoc(thing)
    assert undocumented == []


IMPORT_AND_LOOK = """
import asyncio, gc, logging, signal, sys, threading, warnings
warnings.simplefilter("error")
# The policy that is set, if any; asking for it by its public name makes one, and is deprecated from Python 3.14 on.
def globals_of_others():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), asyncio.events._event_loop_policy
before = globals_of_others()
import retailrocket_async
after = globals_of_others()
alive = gc.get_objects()
print([
    before == after,
    threading.active_count(),
    logging.getLogger().handlers,
    logging.getLogger("retailrocket_async").handlers,
    [type(thing).__name__ for thing in alive if isinstance(thing, asyncio.AbstractEventLoop | asyncio.Task)],
    [name for name in (type(thing).__name__ for thing in alive) if name in ("AsyncClient", "Client")],
    sorted({"starlette", "typer", "uvicorn"} & sys.modules.keys()),
])
"""


def test_import_creates_nothing() -> None:
    """Importing the package starts nothing, changes no signal or log handler, and loads no library of an extra."""
    told = subprocess.run([sys.executable, "-c", IMPORT_AND_LOOK], capture_output=True, text=True, check=True)

    assert told.stdout == "[True, 1, [], [], [], [], []]\n"


def test_version() -> None:
    """`__version__` is the version of the installed distribution."""
    assert retailrocket_async.__version__ == metadata.version("retailrocket-async")


def test_links_of_the_description_are_absolute() -> None:
    """All links of the package's description on PyPI, which is the README, are absolute."""
    # The metadata is read as text, because some libraries replace the parser of `importlib.metadata`, and the parsed
    # metadata then has no description.
    description = metadata.distribution("retailrocket-async").read_text("METADATA")
    assert description is not None
    targets = re.findall(r"\]\(([^)]+)\)", description)

    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert any(target.endswith(f"/blob/v{retailrocket_async.__version__}/CHANGELOG.md") for target in targets)


def test_no_other_dunder() -> None:
    """If a name does not exist in the package, `AttributeError` is raised."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = retailrocket_async.nonsense  # type: ignore[attr-defined]


def test_typed() -> None:
    """The installed package contains `py.typed`, so that type checkers read its annotations."""
    assert resources.files("retailrocket_async").joinpath("py.typed").is_file()


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_are_claims(path: Path) -> None:
    """Every test has a docstring, which says what the test proves."""
    tests = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]

    assert [node.name for node in tests if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", ["noxfile.py", ".ci/run"])
def test_every_process_has_a_hash_seed_of_its_own(path: str) -> None:
    """No script that runs the tests fixes the hash seed, so that tests notice code that depends on a set's order."""
    assert "PYTHONHASHSEED" not in (TESTS.parent / path).read_text("utf-8")


REQUIRING = """
import pytest

@pytest.mark.needs_server("no-such-program")
def test_absent():
    raise AssertionError("never run")

@pytest.mark.needs_server("python3")
def test_skipped_inside():
    pytest.skip("the server does not start")

def test_skipped_otherwise():
    pytest.skip("not on this system")
"""


@pytest.mark.parametrize(
    ("required", "outcomes"), [("0", {"passed": 0, "skipped": 3}), ("1", {"failed": 1, "errors": 1, "skipped": 1})]
)
def test_a_missing_server_is_a_failure_where_servers_are_required(
    required: str, outcomes: dict[str, int], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If RETAILROCKET_REQUIRE_SERVERS=1 is set, a test that needs a real server fails instead of being skipped."""
    monkeypatch.setenv("RETAILROCKET_REQUIRE_SERVERS", required)
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    pytester.makeconftest((TESTS / "conftest.py").read_text("utf-8"))
    pytester.makeini("[pytest]\nmarkers = needs_server(program)\n")
    pytester.makepyfile(REQUIRING)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(**outcomes)
