"""Whatever the README and the documentation promise is executed, or compared with what it speaks of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import retailrocket_async
from retailrocket_async._reply import FailureKind, Reply, Verdict
from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Example(NamedTuple):
    """A block of Python on a page, and what it prints, where the page shows that."""

    path: Path
    line: int
    source: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path, language: str) -> list[re.Match[str]]:
    """Return the fenced blocks of one language."""
    return [block for block in FENCE.finditer(path.read_text("utf-8")) if block[1] == language]


def examples(path: Path) -> Iterator[Example]:
    """Find the Python examples of a page."""
    text = path.read_text("utf-8")
    for block in blocks(path, "python"):
        following = FENCE.match(text, block.end() + 2)
        output = following[2] if following is not None and following[1] == "text" else None
        # A script's first line is the line after the fence.
        yield Example(path, text.count("\n", 0, block.start()) + 1, block[2], output)


EXAMPLES = [example for path in PAGES for example in examples(path)]
SCRIPTS = [example for example in EXAMPLES if "def test_" not in example.source]
TEST_MODULES = [example for example in EXAMPLES if "def test_" in example.source]


@pytest.fixture(scope="module")
def server() -> Iterator[EmulatorProcess]:
    """An emulator in a process of its own, for all examples."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> EmulatorProcess:
    """The emulator, empty, and the environment that `from_env` reads."""
    server.reset()
    monkeypatch.setenv("RETAILROCKET_API_KEY", Settings().api_key)
    monkeypatch.setenv("RETAILROCKET_PARTNER_ID", Settings().partner_id)
    monkeypatch.setenv("RETAILROCKET_BASE_URL", server.url)
    return server


@pytest.mark.parametrize("example", SCRIPTS, ids=str)
def test_script(example: Example, emulator: EmulatorProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python example runs as it is, prints what the page says, and sends nothing that the API would refuse."""
    code = compile("\n" * example.line + example.source, str(example.path), "exec")

    exec(code, {"__name__": "__main__"})

    if example.output is not None:
        assert example.output == capsys.readouterr().out
    assert [record for record in emulator.refused() if record["status"] != 401] == []


@pytest.mark.parametrize("example", TEST_MODULES, ids=str)
def test_module(example: Example, pytester: pytest.Pytester) -> None:
    """Every example that is a test passes under pytest."""
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(example.source)

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")

    result.assert_outcomes(passed=example.source.count("def test_"))


def test_the_readme_has_an_example() -> None:
    """The README shows one complete example, and is short."""
    assert len([example for example in EXAMPLES if example.path == README]) == 1
    assert len(README.read_text("utf-8").splitlines()) < 120


def test_ci_runs_the_readme() -> None:
    """The README has two commands, one for the job and one for the tests, and `.ci/run` runs the latter literally."""
    job, tests = [block[2].strip() for block in blocks(README, "console")]

    assert job.endswith("retailrocket-async demo")
    assert tests.endswith("nox")
    assert tests in [line.strip() for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()]


def test_the_contributing_guide_runs_the_readme() -> None:
    """The contributing guide names the same command for the tests."""
    assert blocks(README, "console")[1][2] in {block[2] for block in blocks(ROOT / "CONTRIBUTING.md", "console")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path: Path) -> None:
    """A link to another file of the repository leads to one."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", FENCE.sub("", path.read_text("utf-8")))

    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_reference_is_complete() -> None:
    """The reference has an entry for every public name."""
    entries = re.findall(
        r"^\.\. (?:auto\w+|py:data):: (\w+)$", (ROOT / "docs/reference.md").read_text("utf-8"), re.MULTILINE
    )

    assert set(retailrocket_async.__all__) <= set(entries)


def commands() -> Iterator[tuple[str, frozenset[str]]]:
    """Find the commands of ours that the pages show, and the options they are given."""
    for path in PAGES:
        for block in blocks(path, "console"):
            for command, arguments in re.findall(r"retailrocket-async (\w+)(.*)", block[2]):
                yield command, frozenset(re.findall(r"(?<= )--[\w-]+", arguments))


@pytest.mark.parametrize(("command", "options"), sorted(set(commands()), key=str))
def test_commands_exist(command: str, options: frozenset[str]) -> None:
    """Every command that a page shows exists, with the options it is given."""
    told = subprocess.run(
        [sys.executable, "-m", "retailrocket_async", command, "--help"], capture_output=True, text=True, check=True
    )

    assert {option for option in options if option not in told.stdout} == set()


def ends() -> Iterator[tuple[str, str, str]]:
    """Read the contract's table of every way a request can end: a status or failure, recorded, retried."""
    text = (ROOT / "docs/delivery-contract.md").read_text("utf-8")
    table = text[text.index("| The request ends with") :].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        first, recorded, retried, _ = [cell.strip() for cell in row.strip("|").split(" | ")]
        for end in re.findall(r"`(\w+)`", first):
            yield end, recorded, retried


@pytest.mark.parametrize(("end", "recorded", "retried"), list(ends()))
def test_the_contract_says_what_the_code_does(end: str, recorded: str, retried: str) -> None:
    """Each row of the contract's table of ends agrees with the code's table."""
    reply = Reply(status=int(end)) if end.isdigit() else Reply(failure=end)  # type: ignore[arg-type]

    assert (recorded, retried) == (
        "no" if not reply.maybe_recorded else "yes" if reply.verdict is Verdict.ACCEPTED else "perhaps",
        "yes" if reply.verdict is Verdict.TRANSIENT else "no",
    )


def test_the_contract_names_every_failure() -> None:
    """The contract's table of ends leaves out no kind of failure, and no status that is retried."""
    named = {end for end, _, _ in ends()}
    retried = {str(status) for status in range(200, 600) if Reply(status=status).verdict is Verdict.TRANSIENT}

    assert named >= {*FailureKind.__args__, *retried}
