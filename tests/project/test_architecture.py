"""Tests of which package may import which other packages; docs/architecture.md describes the packages."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import retailrocket_async

PACKAGE = Path(retailrocket_async.__file__).parent

# The core of the package, from its lowest to its highest part. A part may import only itself and the parts before it.
# All other modules, for example the integrations (see `EDGES`), are above the core.
ORDER = [
    *("_outcome", "_interrupt", "_errors", "_runtime", "_fate", "_receipt", "_events", "_stats"),
    *("_observer", "_queue", "_http", "_delivery", "_spool", "_client", "__init__"),
]

FOREIGN = {
    "httpx": {
        f"_http.{module}"
        for module in (
            *("base_url", "body", "callers_client", "connections", "environment"),
            *("exchange", "failures", "keyed_url", "transport"),
        )
    },
    "tenacity": {"_delivery.retry"},
    "aiolimiter": {"_delivery.rate_limiter"},
    "cattrs": {"_events.codec"},
    "orjson": {"_events.codec"},
    "sqlite3": {"_spool.spool", "_spool.file", "_spool.database", "_spool.schema", "_spool.failures"},
}


def imports_of(source: str, package: str = "retailrocket_async") -> set[str]:
    """Return the modules that `source`, a module of `package`, imports, including imports for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from package import _module` imports a module as well.
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] != "retailrocket_async" or name in MODULES}


def modules(*patterns: str) -> dict[str, str]:
    """Return the files of the package that match a pattern: a dictionary from dotted module name to source text."""
    paths = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    return {
        ".".join(("retailrocket_async", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): (
            path.read_text("utf-8")
        )
        for path in sorted(paths)
    }


def package_of(module: str) -> str:
    """Return the package that contains a module; the module's relative imports refer to this package."""
    folder = PACKAGE.joinpath(*module.split(".")[1:])
    return module if folder.is_dir() else module.rpartition(".")[0]


def part_of(module: str) -> str:
    """Return the part of a module's name directly below the root package, e.g. ``"_delivery"``."""
    return ([*module.split(".")[1:], "__init__"])[0]


MODULES = modules("**/*.py")
CORE = {name: source for name, source in MODULES.items() if part_of(name).startswith("_") and "__main__" not in name}
EMULATOR = {name: source for name, source in MODULES.items() if part_of(name) == "emulator"}
EDGES = {name: source for name, source in MODULES.items() if name not in CORE and name not in EMULATOR}


def upward(module: str, source: str) -> set[str]:
    """Return the parts of the package that `module` imports although they come after it in `ORDER`."""
    part = part_of(module)
    ours = {part_of(name) for name in imports_of(source, package_of(module)) if name.startswith("retailrocket")}
    return ours - {part} - set(ORDER[: ORDER.index(part)])


def test_the_order_is_complete() -> None:
    """`ORDER` lists all packages and modules of the core, and no other ones."""
    assert set(ORDER) == {part_of(name) for name in CORE}


def test_the_page_agrees() -> None:
    """docs/architecture.md lists the packages in the order of `ORDER`, and has a table row for every module."""
    page = Path(__file__).parents[2].joinpath("docs", "architecture.md").read_text("utf-8")
    listed = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    packages = [part for part in ORDER if any(name.startswith(f"retailrocket_async.{part}.") for name in CORE)]

    assert sorted(listed) == sorted(
        name.removeprefix("retailrocket_async.")
        for name in CORE
        if name.removeprefix("retailrocket_async.") not in {*packages, "retailrocket_async"}
    )
    assert " < ".join(f"`{part}`" for part in ORDER if part != "__init__") in page


@pytest.mark.parametrize("module", sorted(CORE))
def test_imports_go_down(module: str) -> None:
    """A module of the core imports only packages and modules that come before its own in `ORDER`."""
    assert upward(module, CORE[module]) == set()


@pytest.mark.parametrize(
    "planted",
    [
        "from retailrocket_async._client.tracking_client import AsyncTrackingClient",
        "import retailrocket_async._client.tracking_client",
        "from retailrocket_async import _client",
        "from .._client.tracking_client import AsyncTrackingClient",
        "from .. import _client",
        "if TYPE_CHECKING:\n    from retailrocket_async._client.tracking_client import AsyncTrackingClient",
        "def late():\n    from retailrocket_async._client.tracking_client import AsyncTrackingClient",
    ],
)
def test_an_upward_import_is_noticed(planted: str) -> None:
    """If the rate limiter imports the client, with any form of the statement, `upward` reports the import."""
    limiter = "retailrocket_async._delivery.rate_limiter"

    assert "_client" in upward(limiter, CORE[limiter] + "\n" + planted)


def test_no_cycle() -> None:
    """No module imports itself indirectly, even if imports for type checking are counted."""
    graph = {name: imports_of(source, package_of(name)) & CORE.keys() for name, source in CORE.items()}

    assert set(TopologicalSorter(graph).static_order()) == CORE.keys()


# Helper modules that every part of the package may import. They name a missing extra, call the user's callbacks
# safely, prevent objects from being copied, and check the text of settings.
SHARED_MODULES = {
    "retailrocket_async._interrupt",
    *(
        f"retailrocket_async._runtime.{name}"
        for name in ("context", "exports", "extras", "foreign_code", "uncopyable", "setting_text")
    ),
}


@pytest.mark.parametrize("module", sorted(EMULATOR))
def test_the_emulator_stands_alone(module: str) -> None:
    """The emulator imports only its own modules and the shared modules."""
    ours = {name for name in imports_of(EMULATOR[module], package_of(module)) if name.startswith("retailrocket_async.")}

    assert {name for name in ours - SHARED_MODULES if not name.startswith("retailrocket_async.emulator")} <= {
        "retailrocket_async._runtime"
    }


# The integrations of several web frameworks share these modules, which are public, because other integrations may use
# them, too.
_FRAMEWORKS = ["retailrocket_async.application", "retailrocket_async.session"]
SHARED = {
    "retailrocket_async.asgi": _FRAMEWORKS,
    "retailrocket_async.aiohttp": _FRAMEWORKS,
    "retailrocket_async.starlette": [*_FRAMEWORKS, "retailrocket_async.asgi"],
    "retailrocket_async.fastapi": ["retailrocket_async.asgi", "retailrocket_async.starlette"],
}


@pytest.mark.parametrize("module", sorted(EDGES))
def test_edges_import_public_names(module: str) -> None:
    """A module outside the core imports only public names, modules of its own package, and the shared modules."""
    edge = "retailrocket_async." + module.split(".")[1]
    imported = imports_of(EDGES[module], package_of(module))
    ours = {name for name in imported if name.split(".")[0] == "retailrocket_async"}

    assert {name for name in ours if name != edge and not name.startswith(edge + ".")} <= {
        "retailrocket_async",
        *SHARED_MODULES,
        "retailrocket_async.emulator",
        *(["retailrocket_async.redis", "retailrocket_async.relay"] if edge.endswith(".cli") else []),
        *(["retailrocket_async.cli"] if module.endswith("__main__") else []),
        *(SHARED.get(module, ())),
    }


@pytest.mark.untraced
@pytest.mark.parametrize("library", sorted(FOREIGN))
def test_few_modules_know_a_library(library: str) -> None:
    """Only the modules listed in `FOREIGN` import the library, so that it can be replaced there."""
    users = {name for name, source in CORE.items() if library in {each.split(".")[0] for each in imports_of(source)}}

    assert {name.removeprefix("retailrocket_async.") for name in users} == FOREIGN[library]


# These modules pass a client of httpx to the tracking client, to measure requests or to answer them in memory.
CALLERS = {
    "retailrocket_async.cli._measuring",
    "retailrocket_async.testing._client",
    "retailrocket_async.testing._api",
    "retailrocket_async.testing._fault",
}


@pytest.mark.parametrize("module", sorted({**EDGES, **EMULATOR}.keys() - CALLERS))
def test_only_the_transport_imports_httpx(module: str) -> None:
    """Outside the core, only the modules listed in `CALLERS` import httpx."""
    assert "httpx" not in {name.split(".")[0] for name in imports_of({**EDGES, **EMULATOR}[module])}
