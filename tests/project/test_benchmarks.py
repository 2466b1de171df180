"""The benchmarks: their tables and demands say what they should, and what is measured can be run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.endurance

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

linux = pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks; they lie beside each other, in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def section(load: Any) -> Any:
    """What sections are made of."""
    return load("_section")


@pytest.fixture
def sink(load: Any) -> Iterator[Any]:
    """Run the server that counts; gives its port and the function that asks for the counters."""
    module = load("_sink")
    with load("_process").running(module.main, module.Sink()) as (port, pipe):
        yield port, lambda: module.taken(pipe)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), ("word", "word"), (1_234_567, "1,234,567"), (0.012345, "0.0123"), (99.5, "99.5"), (1234.5, "1,234")],
)
def test_cells(section: Any, value: object, shown: str) -> None:
    """A number is shown with three significant figures, or whole, and its thousands apart."""
    assert shown == section.cell(value)


def test_a_table_as_text(section: Any) -> None:
    """Columns of numbers go to the right, others to the left, under the title and above the note."""
    table = section.Table(title="Title", columns=("who", "µs"), rows=(("a", 1.5), ("long", None)), note="Note.")

    assert section.as_text(table) == "Title\nwho    µs\n----  ---\na     1.5\nlong\nNote."


def test_a_table_as_markdown(section: Any) -> None:
    """A table in Markdown has the same cells, a title in bold, and no line for a note that is not there."""
    table = section.Table(title="Title", columns=("who", "µs"), rows=(("a", 1.5),))

    assert section.as_markdown(table) == "**Title**\n\n| who | µs |\n|---|---:|\n| a | 1.5 |"


@pytest.mark.parametrize(
    ("figure", "at_least", "met"),
    [(1.0, False, True), (1.01, False, False), (1.0, True, True), (0.99, True, False)],
)
def test_a_demand_is_met_at_its_bound(section: Any, figure: float, at_least: bool, met: bool) -> None:  # noqa: FBT001
    """A demand is met on the right side of its bound, and on the bound itself."""
    assert met == section.Demand(what="", figure=figure, bound=1.0, at_least=at_least).met


@pytest.fixture
def found(section: Any) -> Any:
    """A section with all that one can have."""
    return section.Section(
        name="cost",
        title="Cost",
        tables=(section.Table(title="T", columns=("who", "n"), rows=(("a", 1), ("b", None)), note="N"),),
        demands=(section.Demand(what="that", figure=2.0, bound=1.0, unit="ms"),),
        series={"cost": {"a": 1.0}},
    )


def test_a_run_survives_its_file(load: Any, section: Any, found: Any) -> None:
    """What is written of a run gives the same sections and the same machine again."""
    module, machine = load("bench"), load("_machine").Machine.here()

    text = module.as_json([found], machine, section.Effort())

    assert module.from_json([text]) == ([found], machine)


def test_a_missed_demand_is_named(load: Any, found: Any) -> None:
    """The last table has a row for each demand, with figure and bound, and tells a missed one."""
    table = load("bench").verdict([found], load("_machine").Machine.here())

    assert table.rows == (("cost", "that", 2.0, "<= 1 ms", "MISSED"),)


def test_a_section_that_cannot_be_measured(load: Any, section: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A section whose module is missing is named with the reason, and does not cost the others their figures."""
    result = load("bench")._run(["nothing"], section.Effort(quick=True, rounds=1))

    assert result == ([], ["nothing"])
    assert "nothing: FAILED: ModuleNotFoundError: No module named '_nothing'" in capsys.readouterr().err


def test_help() -> None:
    """The command says what it takes."""
    told = bench("--help")

    assert told.returncode == 0
    assert "--only" in told.stdout


def test_an_unknown_section_is_refused() -> None:
    """A section that does not exist is a mistake in the arguments, and the answer names those that do."""
    told = bench("--only", "cost,nonsense")

    assert told.returncode == 2
    assert "no section nonsense; there are cost, latency" in told.stderr


def test_the_command_runs_to_its_end(tmp_path: Path) -> None:
    """The command measures a section, prints its tables and its demands, and writes all of it as JSON."""
    told = bench("--only", "imports", "--quick", "--json", str(tmp_path / "run.json"))

    assert told.returncode == 0, told.stderr
    assert "What is demanded" in told.stdout
    assert [each["name"] for each in json.loads((tmp_path / "run.json").read_text("utf-8"))["sections"]] == ["imports"]


@linux
@pytest.mark.parametrize("name", ["floor", "ours_by_track", "ours_by_track_many", "ours_with_receipts"])
async def test_a_contestant_sends_all_its_events(load: Any, sink: Any, name: str) -> None:
    """Floor and ours send what they are told to, and the warm-up before that, and nothing is lost or sent twice."""
    port, counters = sink
    module = load("_contestants")

    figures = await getattr(module, name)(port, 1_000)

    assert counters()["events"] == 1_000 + (1_000 if name == "floor" else module.WARM_UP)
    assert all(figure > 0 for figure in figures.values())


@linux
def test_each_part_can_be_measured(load: Any, sink: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of an event's way can be run alone, and what it is measured against."""
    parts = load("_parts")
    monkeypatch.setenv(parts.PORT, str(sink[0]))

    seconds = {name: part(2) for group in parts.PARTS.values() for name, part in group.items()}

    assert all(0 <= taken < 1 for taken in seconds.values())


@linux
@pytest.mark.parametrize("form", ["rows", "envelopes"])
def test_a_file_like_the_clickstream(load: Any, tmp_path: Path, form: str) -> None:
    """The file that is sent holds valid events alone, the same ones each time, mostly views."""
    module, first, second = load("_file"), tmp_path / "first", tmp_path / "second"

    module.write(str(first), form, 2_000)
    module.write(str(second), form, 2_000)
    module.alone(str(first))

    assert first.read_bytes() == second.read_bytes()
    assert 0.95 < first.read_text("utf-8").count("view") / 2_000 < 0.98
