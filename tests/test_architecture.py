"""How the rooms of the package are cut, and who may know whom; docs/architecture.md draws it."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import retailrocket_async

PACKAGE = Path(retailrocket_async.__file__).parent

# A room imports from lower floors only.
FLOORS = [
    {"_foreign"},
    {"_errors", "_extras", "_loop_end", "_cap", "_context", "_veil", "_system"},
    {"_offload", "_worker_thread", "_rules", "_reply", "_setting_text", "_uncopyable", "_file_lock"},
    {"_credentials", "_events", "_outcome", "_environment", "_spool_place"},
    {"_vetting", "_spool_file", "_spool_salvage"},
    {"_wire", "_retry", "_batch", "_own_events", "_spool"},
    {"_report", "_limiter", "_overflow", "_bisection", "_home"},
    {"_bounds", "_lane", "_spool_writer", "_connections", "_exchange"},
    {"_buffer", "_breaker", "_hooks", "_observer", "_transport"},
    {"_flight", "_ledger"},
    {"_intake", "_sender", "_deadlines", "_closing"},
    {"_dispatcher"},
    {"_drain"},
    {"_spooled"},
    {"_verbs", "_threads", "_groups"},
    {"_client"},
    {"__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# An error carries the outcome it tells of: a type on paper, and no import at run time.
ON_PAPER = {("_errors", "_outcome")}

FOREIGN = {
    "httpx": {"_transport", "_exchange", "_connections", "_environment"},
    "tenacity": {"_retry"},
    "aiolimiter": {"_limiter"},
    "cattrs": {"_wire"},
    "orjson": {"_wire"},
    "sqlite3": {"_spool", "_spool_file", "_spool_place"},
}


def imports_of(source: str, package: str = "retailrocket_async", *, on_paper: bool = True) -> set[str]:
    """Return the modules that `source`, a module of `package`, imports, those of TYPE_CHECKING blocks too."""
    tree = ast.parse(source)
    paper = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for inner in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in paper and not on_paper:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from package import _room` imports a room as well.
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names if alias.name.startswith("_")}
    return found


def rooms_of(source: str, *, on_paper: bool = True) -> set[str]:
    """Return the rooms that `source`, a module of the package, imports."""
    modules = imports_of(source, on_paper=on_paper)
    return {name.split(".")[1] for name in modules if name.startswith("retailrocket_async._")}


def uphill(room: str, source: str) -> set[str]:
    """Return the rooms that `room` imports and must not."""
    allowed = {other for other, floor in FLOOR_OF.items() if floor < FLOOR_OF[room]}
    return {other for other in rooms_of(source) - allowed if (room, other) not in ON_PAPER}


def modules(*folders: str) -> dict[str, str]:
    """Return the sources of all modules in the named folders of the package, by their dotted names."""
    paths = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    return {
        ".".join(("retailrocket_async", *path.relative_to(PACKAGE).with_suffix("").parts)): path.read_text("utf-8")
        for path in paths
    }


ROOMS = {path.stem: path.read_text("utf-8") for path in PACKAGE.glob("_*.py") if path.stem != "__main__"}
EMULATOR = modules("emulator")
EDGES = {name: source for name, source in modules(".").items() if name.split(".")[1] not in {*ROOMS, "emulator"}}


def test_every_room_has_a_floor() -> None:
    """The table above names the rooms that there are, no more and no fewer."""
    assert FLOOR_OF.keys() == ROOMS.keys()


def test_the_page_agrees() -> None:
    """The table of floors in the documentation is the one above."""
    page = Path(__file__).parent.parent.joinpath("docs", "architecture.md").read_text("utf-8")
    told: list[set[str]] = []
    for floor, room in re.findall(r"^\| (\d+|door| ) +\| `(\w+)` \|", page, re.MULTILINE):
        if floor.strip():
            told.append(set())
        told[-1].add(room)

    assert told == FLOORS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_downhill(room: str) -> None:
    """A room imports from lower floors only."""
    assert uphill(room, ROOMS[room]) == set()


@pytest.mark.parametrize(
    "planted",
    [
        "from retailrocket_async._client import AsyncTrackingClient",
        "import retailrocket_async._client",
        "from retailrocket_async import _client",
        "from ._client import AsyncTrackingClient",
        "from . import _client",
        "if TYPE_CHECKING:\n    from retailrocket_async._client import AsyncTrackingClient",
        "def late():\n    from retailrocket_async._client import AsyncTrackingClient",
    ],
)
def test_uphill_is_noticed(planted: str) -> None:
    """An import of the client in the limiter does not go unnoticed, however it is written."""
    assert uphill("_limiter", ROOMS["_limiter"] + "\n" + planted) == {"_client"}


def test_no_cycle() -> None:
    """At run time no room needs itself, over whatever way."""
    graph = {room: rooms_of(source, on_paper=False) for room, source in ROOMS.items()}

    assert set(TopologicalSorter(graph).static_order()) == ROOMS.keys()


def test_no_room_knows_the_door() -> None:
    """Rooms import each other by name, never through the front door, nor an edge or the emulator."""
    inside = {room for room in ROOMS if room != "__init__"}
    ours = {
        room: {name for name in imports_of(ROOMS[room]) if name.split(".")[0] == "retailrocket_async"}
        for room in inside
    }

    assert {
        room: names
        for room, names in ours.items()
        if any(not name.startswith("retailrocket_async._") for name in names)
    } == {}


# What names a missing extra, refuses copies of what lives in one process, and checks the text of a setting.
SHARED_ROOMS = {f"retailrocket_async.{room}" for room in ("_extras", "_foreign", "_uncopyable", "_setting_text")}


@pytest.mark.parametrize("module", sorted(EMULATOR))
def test_the_emulator_is_a_witness_of_its_own(module: str) -> None:
    """The emulator imports nothing of ours but itself, and the four that all share."""
    imported = imports_of(EMULATOR[module], "retailrocket_async.emulator")
    ours = {name for name in imported if name.split(".")[0] == "retailrocket_async"}

    assert {name for name in ours - SHARED_ROOMS if not name.startswith("retailrocket_async.emulator")} == set()


# What the frameworks have in common is an edge as well, and public: others may build on it.
_FRAMEWORKS = ["retailrocket_async.application", "retailrocket_async.session"]
SHARED = {
    "retailrocket_async.asgi": _FRAMEWORKS,
    "retailrocket_async.aiohttp": _FRAMEWORKS,
    "retailrocket_async.starlette": [*_FRAMEWORKS, "retailrocket_async.asgi"],
    "retailrocket_async.fastapi": ["retailrocket_async.asgi", "retailrocket_async.starlette"],
}


@pytest.mark.parametrize("module", sorted(EDGES))
def test_edges_use_the_front_door(module: str) -> None:
    """An edge imports public names only, the emulator's public names, itself, and the four that all share."""
    edge = "retailrocket_async." + module.split(".")[1]
    imported = imports_of(EDGES[module], module.rpartition(".")[0])
    ours = {name for name in imported if name.split(".")[0] == "retailrocket_async"}

    assert {name for name in ours if name != edge and not name.startswith(edge + ".")} <= {
        "retailrocket_async",
        *SHARED_ROOMS,
        "retailrocket_async.emulator",
        *(["retailrocket_async.redis", "retailrocket_async.relay"] if edge.endswith(".cli") else []),
        *(["retailrocket_async.cli"] if module.endswith("__main__") else []),
        *(SHARED.get(module, ())),
    }


@pytest.mark.parametrize("library", sorted(FOREIGN))
def test_one_room_knows_a_library(library: str) -> None:
    """A library that could be exchanged is known to one room, and httpx to the three of the transport."""
    rooms = {room for room, source in ROOMS.items() if library in {name.split(".")[0] for name in imports_of(source)}}

    assert rooms == FOREIGN[library]


# These hand in an `http_client` of their own, as any caller may: one measures, and the requests of one end in memory.
CALLERS = {
    "retailrocket_async.cli._measuring",
    "retailrocket_async.testing._client",
    "retailrocket_async.testing._api",
    "retailrocket_async.testing._fault",
}


@pytest.mark.parametrize("module", sorted({**EDGES, **EMULATOR}.keys() - CALLERS))
def test_only_the_transport_speaks_http(module: str) -> None:
    """No edge and nothing of the emulator says httpx, but for those that hand in a client of their own."""
    assert "httpx" not in {name.split(".")[0] for name in imports_of({**EDGES, **EMULATOR}[module])}
