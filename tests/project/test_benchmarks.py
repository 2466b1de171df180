"""Tests of the benchmarks: tables show the right figures, demands are judged correctly, and every part can be run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import bench, contestants, parts
from benchmarks.report.machine import Machine
from benchmarks.sections import file
from benchmarks.support import sink
from benchmarks.support.section import Demand, Effort, Section, Table, as_markdown, as_text, cell

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.endurance

ROOT = Path(__file__).parents[2]

linux = pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")


@pytest.fixture
def server() -> Iterator[sink.Sink]:
    """Run the benchmarks' HTTP server, which counts the events that it receives."""
    with sink.running() as running:
        yield running


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks' command with these arguments, and return the finished process."""
    command = [sys.executable, "-m", "benchmarks.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), ("word", "word"), (1_234_567, "1,234,567"), (0.012345, "0.0123"), (99.5, "99.5"), (1234.5, "1,234")],
)
def test_cells(value: str | float | None, shown: str) -> None:
    """A number in a table has three significant figures or is whole, and has commas between thousands."""
    assert shown == cell(value)


def test_a_table_as_text() -> None:
    """A table as text has its title, then the columns (numbers aligned right, others left), then its note."""
    table = Table(title="Title", columns=("who", "µs"), rows=(("a", 1.5), ("long", None)), note="Note.")

    assert as_text(table) == "Title\nwho    µs\n----  ---\na     1.5\nlong\nNote."


def test_a_table_as_markdown() -> None:
    """A table as Markdown has a bold title, the same cells as the text, and no line for a missing note."""
    table = Table(title="Title", columns=("who", "µs"), rows=(("a", 1.5),))

    assert as_markdown(table) == "**Title**\n\n| who | µs |\n|---|---:|\n| a | 1.5 |"


@pytest.mark.parametrize(
    ("figure", "at_least", "met"),
    [(1.0, False, True), (1.01, False, False), (1.0, True, True), (0.99, True, False)],
)
def test_a_demand_is_met_at_its_bound(figure: float, at_least: bool, met: bool) -> None:  # noqa: FBT001
    """A demand is met if the measured figure equals the bound, or is on the allowed side of the bound."""
    assert met == Demand(what="", figure=figure, bound=1.0, at_least=at_least).met


@pytest.fixture
def section() -> Section:
    """Return a section of the benchmarks' results that has tables, demands and a series."""
    return Section(
        name="cost",
        title="Cost",
        tables=(Table(title="T", columns=("who", "n"), rows=(("a", 1), ("b", None)), note="N"),),
        demands=(Demand(what="that", figure=2.0, bound=1.0, unit="ms"),),
        series={"cost": {"a": 1.0}},
    )


def test_a_run_survives_its_file(section: Section) -> None:
    """If a run is written as JSON and read again, its sections and its machine are the same as before."""
    machine = Machine.here()

    text = bench.as_json([section], machine, Effort())

    assert bench.from_json([text]) == ([section], machine)


def test_a_missed_demand_is_named(section: Section) -> None:
    """If a demand is missed, the table of all demands marks it as missed, and shows the figure and the bound."""
    table = bench.verdict([section], Machine.here())

    assert table.rows == (("cost", "that", 2.0, "<= 1 ms", "MISSED"),)


def test_a_section_that_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """If a section's module is missing, the section is reported with the reason."""
    result = bench._run(["nothing"], Effort(quick=True, rounds=1))

    assert result == ([], ["nothing"])
    expected = "nothing: FAILED: ModuleNotFoundError: No module named 'benchmarks.sections.nothing'"
    assert expected in capsys.readouterr().err


def test_help() -> None:
    """If `--help` is given, the command explains its options."""
    done = run_bench("--help")

    assert done.returncode == 0
    assert "--only" in done.stdout


def test_an_unknown_section_is_refused() -> None:
    """If a section is unknown, the command fails and lists the known sections."""
    done = run_bench("--only", "cost,nonsense")

    assert done.returncode == 2
    assert "no section nonsense; there are cost, latency" in done.stderr


def test_the_command_runs_to_its_end(tmp_path: Path) -> None:
    """If a section is measured, its tables and demands are printed and written as JSON."""
    done = run_bench("--only", "imports", "--quick", "--json", str(tmp_path / "run.json"))

    assert done.returncode == 0, done.stderr
    assert "Figures and their bounds" in done.stdout
    assert [each["name"] for each in json.loads((tmp_path / "run.json").read_text("utf-8"))["sections"]] == ["imports"]


@linux
@pytest.mark.parametrize("name", ["floor", "ours_by_track", "ours_by_track_many", "ours_with_receipts"])
async def test_a_contestant_sends_all_its_events(server: sink.Sink, name: str) -> None:
    """If the floor (the plain HTTP requests to compare with) or a client runs, the server gets each event once."""
    figures = await getattr(contestants, name)(server.port, 1_000)

    assert server.take()["events"] == 1_000 + (1_000 if name == "floor" else contestants.WARM_UP)
    assert all(figure > 0 for figure in figures.values())


@linux
def test_each_part_can_be_measured(server: sink.Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of an event's way through the client can be measured alone."""
    monkeypatch.setenv(parts.PORT, str(server.port))

    seconds = {name: part(2) for group in parts.PARTS.values() for name, part in group.items()}

    assert all(0 <= taken < 1 for taken in seconds.values())


@linux
@pytest.mark.parametrize("form", ["rows", "envelopes"])
def test_a_file_like_the_clickstream(tmp_path: Path, form: file.Form) -> None:
    """If the input file of the file benchmark is written twice, both files are equal and contain mostly views."""
    first, second = tmp_path / "first", tmp_path / "second"

    file.write(str(first), form, 2_000)
    file.write(str(second), form, 2_000)
    file.alone(str(first))

    assert first.read_bytes() == second.read_bytes()
    assert 0.95 < first.read_text("utf-8").count("view") / 2_000 < 0.98
