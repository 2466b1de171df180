"""Every public module works without optional libraries, or its error names the extra to install."""

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

# The import names of their libraries.
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

# A statement that needs the extra.
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
    """Return the errors of statements, "" for none, in a process in which these libraries are not installed."""
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
    """Return the dotted names of all modules of the package that a user may import."""
    names = [
        ".".join(("retailrocket_async", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in PACKAGE.rglob("*.py")
    ]
    names = [name.removesuffix(".__init__") for name in names]
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))


def test_every_extra_is_here() -> None:
    """The tables above have every extra of the package."""
    assert EXTRAS.keys() == LIBRARIES.keys() == USES.keys()


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_a_missing_library_names_its_extra(extra: str) -> None:
    """Without one library of an extra, importing what needs it fails with a message that says what to install."""
    errors = [errors_without([library], USES[extra])[0] for library in LIBRARIES[extra]]

    assert all(f'pip install "retailrocket-async[{extra}]"' in line for line in errors), errors


def test_every_public_module() -> None:
    """Without any optional library every public module can be imported, or its error names an extra."""
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
    """Every exported name of the relay exists, or its error names an extra."""
    from retailrocket_async import relay

    everything = sorted({library for libraries in LIBRARIES.values() for library in libraries})

    errors = errors_without(everything, *(f"from retailrocket_async.relay import {name}" for name in relay.__all__))

    assert all(not line or "pip install" in line for line in errors), errors


def test_a_module_of_ours_is_no_extra() -> None:
    """A missing module of the package itself raises the plain error, as it is a defect."""
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'retailrocket_async\._nothing'"), needing("redis"):
        import retailrocket_async._nothing  # noqa: F401


def test_an_old_version_names_the_extra() -> None:
    """If a library lacks a name of newer versions, the error names the extra that installs one."""
    errors = r'another version of json is needed .*: pip install "retailrocket-async\[redis\]"'
    with pytest.raises(ImportError, match=errors), needing("redis"):
        from json import nothing  # type: ignore[attr-defined] # noqa: F401
