"""Everything that the README and the documentation promise is executed, or compared with the code."""

from __future__ import annotations

import atexit
import logging
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import retailrocket_async
from retailrocket_async import Abandoned, RetryPolicy
from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
from retailrocket_async._delivery.flight import Flight
from retailrocket_async._events.codec import BATCH_PATH
from retailrocket_async._http.reply import FailureKind, Reply, Verdict
from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process
from tests.support.command import run_command
from tests.support.receipts import batch_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from retailrocket_async._queue.batch import Batch

pytestmark = pytest.mark.endurance

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "README.ru.md",
    ROOT / "CONTRIBUTING.md",
    # Folders whose names begin with "_" contain generated pages, which are left out.
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.parent.name.startswith("_")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Example(NamedTuple):
    """A Python block of a page, and the output that the page shows below the block (None if it shows no output)."""

    path: Path
    line: int
    source: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path, language: str) -> list[re.Match[str]]:
    """Return the fenced code blocks of a page in one language, e.g. "python"."""
    return [block for block in FENCE.finditer(path.read_text("utf-8")) if block[1] == language]


def examples(path: Path) -> Iterator[Example]:
    """Yield the Python examples of a page."""
    text = path.read_text("utf-8")
    for block in blocks(path, "python"):
        following = FENCE.match(text, block.end() + 2)
        output = following[2] if following is not None and following[1] == "text" else None
        # The first line of the example is the line after the fence.
        yield Example(path, text.count("\n", 0, block.start()) + 1, block[2], output)


EXAMPLES = [example for path in PAGES for example in examples(path)]
SCRIPTS = [example for example in EXAMPLES if "def test_" not in example.source]
TEST_MODULES = {
    path: [example for example in EXAMPLES if example.path == path and "def test_" in example.source] for path in PAGES
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmulatorProcess]:
    """Provide one emulator, in its own process, for all examples."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> EmulatorProcess:
    """Remove all recorded events from the emulator, and set the environment variables that `from_env` reads."""
    server.reset()
    monkeypatch.setenv("RETAILROCKET_API_KEY", Settings().api_key)
    monkeypatch.setenv("RETAILROCKET_PARTNER_ID", Settings().partner_id)
    monkeypatch.setenv("RETAILROCKET_BASE_URL", server.url)
    return server


@contextmanager
def logs_as_they_were() -> Iterator[None]:
    """At the end of the block, remove the log handlers that the block has added, and stop their threads."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            if (listener := getattr(handler, "listener", None)) is not None:
                listener.stop()
                # The listener is stopped here; a second stop at the end of the process would raise an error.
                atexit.unregister(listener.stop)
            handler.close()


@pytest.mark.parametrize("example", SCRIPTS, ids=str)
def test_script(example: Example, emulator: EmulatorProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """If a Python example runs unchanged, it prints what the page shows, and the API refuses none of its requests."""
    code = compile("\n" * example.line + example.source, str(example.path), "exec", dont_inherit=True)

    with logs_as_they_were():
        exec(code, {"__name__": "__main__"})

    if example.output is not None:
        assert example.output == capsys.readouterr().out
    assert [record for record in emulator.refused() if record["status"] != 401] == []


@pytest.mark.parametrize("path", [path for path in PAGES if TEST_MODULES[path]], ids=lambda path: path.name)
def test_modules(path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an example is a test module, its tests pass under pytest."""
    # Loading all installed pytest plugins takes longer than the tests, so only the plugins named below are loaded.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugins = ("-p", "pytest_asyncio.plugin", "-p", "pytest_retailrocket_async", "-p", "no:cacheprovider")
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(**{f"test_line_{example.line}": example.source for example in TEST_MODULES[path]})

    result = pytester.runpytest_subprocess(*plugins, "-W", "error")

    result.assert_outcomes(passed=sum(example.source.count("def test_") for example in TEST_MODULES[path]))


def test_the_readme_has_an_example() -> None:
    """The README has one complete example and fewer than 120 lines."""
    assert len([example for example in EXAMPLES if example.path == README]) == 1
    assert len(README.read_text("utf-8").splitlines()) < 120


def test_ci_runs_the_readme() -> None:
    """The README's command that runs the tests is also in `.ci/run`."""
    job, tests = [block[2].strip() for block in blocks(README, "console")]

    assert job.endswith("retailrocket-async demo")
    assert tests.endswith("nox")
    assert tests in [line.strip() for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()]


def test_the_russian_readme_says_the_same() -> None:
    """The Russian README has the same commands as README.md and, apart from texts and comments, the same example."""
    translated = ROOT / "README.ru.md"
    assert [block[2] for block in blocks(README, "console")] == [block[2] for block in blocks(translated, "console")]
    codes = [
        re.sub(r"#.*|\"[^\"]*:?\"", "", next(examples(path)).source).replace(" ", "") for path in (README, translated)
    ]
    assert codes[0] == codes[1]


def test_the_contributing_guide_runs_the_readme() -> None:
    """The contributing guide shows the same command for the tests as the README."""
    assert blocks(README, "console")[1][2] in {block[2] for block in blocks(ROOT / "CONTRIBUTING.md", "console")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path: Path) -> None:
    """If a page links to a file of the repository, this file exists."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", FENCE.sub("", path.read_text("utf-8")))

    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_reference_is_complete() -> None:
    """Every public name of the package has an entry in docs/reference.md."""
    entries = re.findall(
        r"^\.\. (?:auto\w+|py:data):: (\w+)$", (ROOT / "docs/reference.md").read_text("utf-8"), re.MULTILINE
    )

    assert set(retailrocket_async.__all__) <= set(entries)


def commands() -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each `retailrocket-async` command on the pages, with the options that the page gives it."""
    for path in PAGES:
        for block in blocks(path, "console"):
            for command, arguments in re.findall(
                r"retailrocket-async ([\w-]+(?: (?:stat|list|dead|export|replay|purge))*)(.*)", block[2]
            ):
                yield command, frozenset(re.findall(r"(?<= )--[\w-]+", arguments))


@pytest.mark.parametrize(("command", "options"), sorted(set(commands()), key=str))
def test_commands_exist(command: str, options: frozenset[str]) -> None:
    """Every command that a page shows exists, and so do the options that the page gives it."""
    told = run_command(*command.split(), "--help")

    assert told.exit_code == 0
    assert {option for option in options if option not in told.stdout} == set()


class End(NamedTuple):
    """One row of the table in docs/failure-kinds.md: what happens if a request ends with this status or failure."""

    reply: Reply
    recorded: str
    sent_again: str
    state: str
    once: str
    outcome: str

    def __str__(self) -> str:
        return str(self.reply.failure or self.reply.status)


def ends() -> Iterator[End]:
    """Yield the rows of the table in docs/failure-kinds.md, one for each status or failure."""
    text = (ROOT / "docs/failure-kinds.md").read_text("utf-8")
    table = text[text.index("| The request ends with") :].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        first, *cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        for end in re.findall(r"`(\w+)`", first):
            reply = Reply(status=int(end)) if end.isdigit() else Reply(failure=end)  # type: ignore[arg-type]
            yield End(reply, *cells)


def batch_of_two() -> Batch:
    """Return a batch of two events, which are sent in one request."""
    return batch_with([b"{}", b"{}"])


def sent_again(reply: Reply) -> str:
    """Return what the code does with a batch that gets this reply, in the words of the table."""
    if reply.verdict is Verdict.BLOCKED:
        return "once corrected"
    batch = batch_of_two()
    flight = Flight(BATCH_PATH, b"", ["view", "view"], started_at=0.0, opened_in=[0], batch=batch)
    flight.depart(0.0)
    outcome = flight.judge(reply, 0.0)
    if outcome is not None:
        return "in parts" if flight.divide(outcome, 0.0) else "no"
    assert RetryPolicy().wait_before_next(reply, attempt=1, elapsed=0.0) is not None
    return "yes, more slowly" if reply.verdict is Verdict.THROTTLED else "yes"


def state_after(reply: Reply) -> str:
    """Return a client's state after five requests with this reply, and whether one request was enough to reach it."""
    breaker = CircuitBreaker(RetryPolicy())
    if reply.failure == "limiter":
        # If the limiter fails, no request is sent, so the state does not change.
        return breaker.state
    admission = breaker.admit(0.0)
    assert admission is not None
    states: list[str] = []
    for _ in range(5):
        breaker.report(admission, reply, 0.0, halts=True)
        states.append(breaker.state)
    assert set(states[1:4]) == set(states[:1])
    return f"{states[0]}, by the first" if states[0] != "sending" else states[-1]


def outcome_after(reply: Reply) -> str:
    """Return the outcome of a single event whose request always gets this reply."""
    flight = Flight(BATCH_PATH, b"", ["view"], started_at=0.0, opened_in=[0])
    flight.depart(0.0)
    outcome = flight.judge(reply, 0.0) or flight.give_up("retries_exhausted", 0.0)
    reason = f", `{outcome.reason}`" if isinstance(outcome, Abandoned) else ""
    return f"`{type(outcome).__name__}`{reason}"


@pytest.mark.parametrize("end", list(ends()), ids=str)
def test_the_table_of_ends_says_what_the_code_does(end: End) -> None:
    """Each row of the table says what the code does after the row's status or failure."""
    reply = end.reply
    repeated = sent_again(reply) in ("yes", "yes, more slowly")

    assert end == End(
        reply,
        recorded="no" if not reply.maybe_recorded else "yes" if reply.verdict is Verdict.ACCEPTED else "perhaps",
        sent_again=sent_again(reply),
        state=state_after(reply),
        once="given up" if repeated and reply.maybe_recorded else "like others",
        outcome=outcome_after(reply),
    )


def test_the_table_of_ends_names_every_failure() -> None:
    """The table has a row for each kind of failure, and for each status that is treated in a special way."""
    named = {str(end) for end in ends()}
    usual = {3: Verdict.BLOCKED, 4: Verdict.REFUSED, 5: Verdict.UNCLEAR}
    special = {str(status) for status in range(300, 600) if Reply(status=status).verdict is not usual[status // 100]}

    assert named >= {*FailureKind.__args__, *special, "413"}
    assert {end.reply.verdict for end in ends()} == set(Verdict)
