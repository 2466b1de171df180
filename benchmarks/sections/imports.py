"""Measures the time of importing the package and its size on disk, compared with its required dependencies.

Times are the CPU time of a fresh process during the import. The files are in the system's cache by then, so that
reading them takes little.
"""

from __future__ import annotations

import compileall
import re
import statistics
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement

import retailrocket_async
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution

    from benchmarks.support.section import Effort

_PACKAGE = "retailrocket-async"
_SHARE = 1.3
"""Greatest allowed time for importing the package, as a multiple of the time for its dependencies."""

_ROUNDS = 21
_MOST_EXPENSIVE = 10

_ALONE = "import sys; sys.modules.update(dict.fromkeys(('click', 'pygments', 'rich')))"
"""Hides the modules that only the extra `cli` installs: httpx would import its own command line with them."""

_TIMED = """
import time
{first}
cpu, wall = time.process_time(), time.perf_counter()
import {modules}
print(time.process_time() - cpu, time.perf_counter() - wall)
"""
_TRACE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| *(\S+)")


class _Import(NamedTuple):
    """An import to measure.

    Attributes:
        modules: the modules to import.
        first: code that runs before the import.
    """

    modules: str
    first: str = ""


class _Times(NamedTuple):
    """The duration of one import in milliseconds."""

    cpu: float
    wall: float


def measure(effort: Effort) -> Section:
    """Measure each import in fresh processes in turns, then the modules and the sizes of the files."""
    # An installed package has compiled modules. A checkout may have none, and would then be compiled at every import,
    # so it is compiled here.
    compileall.compile_dir(str(Path(retailrocket_async.__file__).parent), quiet=1)
    required = [Requirement(line) for line in distribution(_PACKAGE).requires or () if "extra ==" not in line]
    dependencies = ", ".join(sorted(requirement.name for requirement in required))
    imports = {
        "its required dependencies": _Import(dependencies, _ALONE),
        "retailrocket_async": _Import("retailrocket_async", _ALONE),
        "retailrocket_async, extra cli installed": _Import("retailrocket_async"),
        "the command line": _Import("retailrocket_async.cli._app"),
    }
    rounds = effort.rounds if effort.quick else max(_ROUNDS, effort.rounds)
    report(f"imports: rounds: {rounds}")
    medians = {}
    for name, runs in zip(imports, zip(*_rounds(list(imports.values()), rounds), strict=True), strict=True):
        medians[name] = _Times(statistics.median(run.cpu for run in runs), statistics.median(run.wall for run in runs))
    base = medians["its required dependencies"].cpu
    times = tuple((name, took.cpu, took.wall, took.cpu / base) for name, took in medians.items())
    return Section(
        name="imports",
        title="What an import takes",
        tables=(
            Table(
                title="Import",
                columns=("import", "CPU ms", "ms", "x its dependencies"),
                rows=times,
                note=f"In fresh processes; medians of {rounds}. The dependencies: {dependencies}. The extra `cli` is "
                "hidden except where named: with it httpx imports its own command line, too.",
            ),
            Table(
                title="The most expensive modules",
                columns=("module", "ms by itself", "ms with all it imports"),
                rows=tuple(_most_expensive()),
                note="From `python -X importtime -c 'import retailrocket_async'`, which makes every import slower.",
            ),
            Table(
                title="On disk",
                columns=("distribution", "version", "MiB"),
                rows=tuple(_sizes()),
                note="Installed files without bytecode: the package without extras, and its dependencies.",
            ),
        ),
        demands=(
            Demand(
                what="import of the package, times that of its dependencies",
                figure=medians["retailrocket_async"].cpu / base,
                bound=_SHARE,
            ),
        ),
    )


def _rounds(imports: list[_Import], rounds: int) -> Iterator[list[_Times]]:
    # The first import of each kind may compile modules, so it is not measured.
    for each in imports:
        _timed(each)
    for _ in range(rounds):
        yield [_timed(each) for each in imports]


def _timed(what: _Import) -> _Times:
    command = [sys.executable, "-c", _TIMED.format(**what._asdict())]
    cpu, wall = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return _Times(float(cpu) * 1000, float(wall) * 1000)


def _most_expensive() -> Iterator[tuple[str, float, float]]:
    command = [sys.executable, "-X", "importtime", "-c", f"{_ALONE}; import retailrocket_async"]
    traced = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    modules = [(name, int(own) / 1000, int(whole) / 1000) for own, whole, name in _TRACE.findall(traced)]
    yield from sorted(modules, key=lambda module: module[1], reverse=True)[:_MOST_EXPENSIVE]


def _sizes() -> Iterator[tuple[str, str, float]]:
    """Yield name, version and MiB of the package, of each distribution that it requires, and of all together."""
    # The folder of the package is measured, because an editable installation does not list its files.
    [package] = map(Path, retailrocket_async.__path__)
    own = sum(path.stat().st_size for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    total = own
    yield _PACKAGE, distribution(_PACKAGE).version, own / 2**20
    for found in sorted(_required(_PACKAGE).values(), key=lambda each: each.metadata["Name"].lower()):
        size = sum(
            path.stat().st_size
            for file in found.files or ()
            if file.suffix != ".pyc" and (path := Path(str(file.locate()))).is_file()
        )
        total += size
        yield found.metadata["Name"], found.version, size / 2**20
    yield "all together", "", total / 2**20


def _required(name: str) -> dict[str, Distribution]:
    """Return the direct and indirect requirements of a distribution in this environment, by name."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        for line in distribution(waiting.pop()).requires or ():
            requirement = Requirement(line)
            known = requirement.name.lower().replace("_", "-")
            if known not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found[known] = distribution(known)
                waiting.append(known)
    return found
