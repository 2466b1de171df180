"""If an optional library is missing, every public module works or raises an error that names the extra to install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import retailrocket_async
from retailrocket_async._runtime.extras import needing

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
PACKAGE = Path(retailrocket_async.__file__).parent

# The import names of each extra's libraries.
LIBRARIES = {
    "aiohttp": ["aiohttp"],
    "cli": ["typer", "rich"],
    "emulator": ["starlette", "uvicorn"],
    "fastapi": ["fastapi"],
    "http2": ["h2"],
    "kafka": ["aiokafka"],
    "nats": ["nats"],
    "otel": ["opentelemetry"],
    "redis": ["redis"],
    "relay": ["prometheus_client", "starlette", "uvicorn"],
    "starlette": ["starlette"],
}

# For each extra, a statement that needs it.
USES = {
    "aiohttp": "import retailrocket_async.aiohttp",
    "cli": "import retailrocket_async.cli._app",
    "emulator": "import retailrocket_async.emulator",
    "fastapi": "import retailrocket_async.fastapi",
    "http2": "from retailrocket_async import AsyncTrackingClient as C; C('key', 'shop', http2=True)",
    "kafka": "from retailrocket_async.relay import source_from_url as s; s('kafka://h/t?group=g', name='n')",
    "nats": "from retailrocket_async.relay import source_from_url as s; s('nats://h/?stream=s&consumer=c', name='n')",
    "otel": "import retailrocket_async.otel",
    "redis": "import retailrocket_async.redis",
    "relay": "from retailrocket_async.relay import health_app",
    "starlette": "import retailrocket_async.starlette",
}

BLOCKER = """
import importlib, json, sys

class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker)
"""


def errors_without(libraries: list[str], *statements: str) -> list[str]:
    """Run the statements in a process without these libraries. Return each statement's error, or "" if it succeeded."""
    code = f"""
BLOCKED = {libraries!r}
{BLOCKER}
errors = []
for statement in {statements!r}:
    try:
        exec(statement, {{}})
    except Exception as error:
        errors.append(f"{{type(error).__name__}}: {{error}}")
    else:
        errors.append("")
print(json.dumps(errors))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    errors: list[str] = json.loads(done.stdout)
    return errors


def public_modules() -> list[str]:
    """Return the dotted names of the package's modules that a user may import."""
    names = [
        ".".join(("retailrocket_async", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in PACKAGE.rglob("*.py")
    ]
    names = [name.removesuffix(".__init__") for name in names]
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))


def test_every_extra_is_here() -> None:
    """If the package has an extra, the tables of these tests contain it."""
    assert EXTRAS.keys() == LIBRARIES.keys() == USES.keys()


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_a_missing_library_names_its_extra(extra: str) -> None:
    """If a library of an extra is missing, the import error says which extra to install."""
    errors = [errors_without([library], USES[extra])[0] for library in LIBRARIES[extra]]

    assert all(f'pip install "retailrocket-async[{extra}]"' in line for line in errors), errors


def test_every_public_module() -> None:
    """If all optional libraries are missing, every public module can be imported or its error names an extra."""
    modules = public_modules()
    everything = sorted({library for libraries in LIBRARIES.values() for library in libraries})

    errors = errors_without(everything, *(f"import {module}" for module in modules))

    unclear = {
        module: line
        for module, line in zip(modules, errors, strict=True)
        if line
        and not re.fullmatch(r'ModuleNotFoundError: \w+ is not installed: pip install "retailrocket-async.*', line)
    }
    assert unclear == {}


def test_every_name_of_the_relay() -> None:
    """If all optional libraries are missing, every name of the relay can be imported or its error names an extra."""
    from retailrocket_async import relay

    everything = sorted({library for libraries in LIBRARIES.values() for library in libraries})

    errors = errors_without(everything, *(f"from retailrocket_async.relay import {name}" for name in relay.__all__))

    assert all(not line or "pip install" in line for line in errors), errors


def test_a_module_of_ours_is_no_extra() -> None:
    """If a module of the package itself is missing, the error names no extra, because no extra can install it."""
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'retailrocket_async\._nothing'"), needing("redis"):
        import retailrocket_async._nothing  # noqa: F401


def test_an_old_version_names_the_extra() -> None:
    """If an imported name is missing in a library, the error names the extra that installs a newer version."""
    errors = r'another version of json is needed .*: pip install "retailrocket-async\[redis\]"'
    with pytest.raises(ImportError, match=errors), needing("redis"):
        from json import nothing  # type: ignore[attr-defined] # noqa: F401
