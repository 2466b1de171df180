"""The command line as a whole: its help, its version, its extras, its secret; and what its tests share."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import random
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from retailrocket_async import AsyncTrackingClient
from retailrocket_async.cli import main
from retailrocket_async.cli._app import app
from retailrocket_async.cli._credentials import DEFAULT_BASE_URL
from retailrocket_async.cli._emulator import needing_emulator

if TYPE_CHECKING:
    from collections.abc import Generator

    from retailrocket_async.emulator import EmulatorProcess

COMMANDS = ("demo", "send", "check", "emulate", "relay")
HEADER = "timestamp,visitorid,event,itemid,transactionid"
UNSET = {"RETAILROCKET_API_KEY": "", "RETAILROCKET_PARTNER_ID": "", "RETAILROCKET_BASE_URL": "http://127.0.0.1:9/"}
# Wide, so that no sentence is broken, and without colours.
PLAIN = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}

# Code: the command line, and outputs that take nothing.
MAIN = "from retailrocket_async.cli import main; main()"
GONE = "import os; ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 1)"
FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
NO_SPACE = "error: the standard output cannot be written: No space left on device\n"


def settings_for(emulator: EmulatorProcess) -> dict[str, str]:
    """Return the environment in which a command reaches `emulator`."""
    return {
        **PLAIN,
        "RETAILROCKET_API_KEY": "dev-api-key",
        "RETAILROCKET_PARTNER_ID": "dev-partner",
        "RETAILROCKET_BASE_URL": emulator.url,
    }


def invoke(*arguments: object, env: dict[str, str] | None = None, stdin: bytes = b"") -> Any:
    """Run the command line in this process; without `env`, with nothing configured."""
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin, env={**PLAIN, **UNSET, **(env or {})})


@contextmanager
def started(
    *arguments: object, env: dict[str, str] | None = None, code: str | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Start the command line, or Python `code` with its arguments, as a process whose streams are pipes.

    It does not outlive the block, nor five minutes: a test that hangs fails.
    """
    process = subprocess.Popen(
        [sys.executable, *(["-m", "retailrocket_async"] if code is None else ["-c", code]), *map(str, arguments)],
        env={**os.environ, **PLAIN, **UNSET, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = threading.Timer(300, process.kill)
    deadline.start()
    try:
        yield process
    finally:
        deadline.cancel()
        process.kill()
        # What is left in the pipes of a process that is gone is of no interest.
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        process.wait()


def finished(
    *arguments: object, env: dict[str, str] | None = None, code: str | None = None, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run the command line as a process to its end; return its status and what it printed on both outputs."""
    with started(*arguments, env=env, code=code) as process:
        out, err = process.communicate(stdin)
        return process.returncode, out.decode(), err.decode()


def rows(count: int, seed: int = 1) -> list[str]:
    """Return that many rows of a clickstream: visitors come back, and every fiftieth row is an order."""
    chance = random.Random(seed)
    made: list[str] = []
    for number in range(count):
        visitor = chance.randint(1, max(2, count // 3))
        kind = chance.choices(("view", "addtocart", "transaction"), (94, 4, 2))[0]
        transaction = str(number) if kind == "transaction" else ""
        made.append(f"{1430622120563 + 1000 * number},{visitor},{kind},{chance.randint(1, 466866)},{transaction}")
    return made


def clickstream(lines: list[str]) -> bytes:
    """Return a file of the clickstream with these rows."""
    return "\n".join([HEADER, *lines, ""]).encode()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    """The help of every command shows how to call it and what its exit statuses mean."""
    told = invoke(name, "--help").stdout

    assert f"  retailrocket-async {name}" in told
    assert "Exit status: 0" in told


def test_help_names_every_command() -> None:
    """Without arguments the commands are listed, each with what it does."""
    told = invoke("--help").stdout

    assert [name for name in COMMANDS if f" {name} " not in told] == []


def test_help_is_plain_in_a_pipe() -> None:
    """In a pipe the help has no control characters but line ends."""
    told = finished("send", "--help")[1]

    assert {letter for letter in told if not letter.isprintable()} == {"\n"}


@pytest.mark.parametrize(("begun", "completed"), [("se", "send"), ("send --wat", "--watch"), ("spool de", "dead")])
def test_shells_complete(begun: str, completed: str) -> None:
    """Commands and options are completed by the shell, as typer has it installed with --install-completion."""
    words = ["retailrocket-async", *begun.split()]
    asked = {
        "_RETAILROCKET_ASYNC_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }

    assert completed in finished(env=asked, code=f"import sys; sys.argv[0] = 'retailrocket-async'; {MAIN}")[1].split()


def test_version() -> None:
    """The version is printed."""
    assert invoke("--version").stdout.startswith("retailrocket-async ")


def test_version_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source tree that is not installed has no version, and says so."""
    monkeypatch.setattr("importlib.metadata.version", uninstalled)

    assert invoke("--version").stdout == "retailrocket-async unknown: a source tree that is not installed\n"


def uninstalled(name: str) -> str:
    """Have no metadata."""
    raise PackageNotFoundError(name)


def test_module_is_the_command() -> None:
    """``python -m retailrocket_async`` is the same command line."""
    status, told, _ = finished("--version")

    assert (0, "retailrocket-async ") == (status, told[:19])


def test_module_can_be_imported() -> None:
    """Importing the module runs nothing."""
    assert importlib.import_module("retailrocket_async.__main__").main is main


def test_outputs_that_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that put its own objects in the place of the outputs can run the command line."""
    out = io.StringIO()
    monkeypatch.setattr("sys.argv", ["retailrocket-async", "--version"])
    monkeypatch.setattr("sys.stdout", out)

    with pytest.raises(SystemExit):
        main()

    assert out.getvalue().startswith("retailrocket-async ")


def test_unknown_option_is_a_usage_error() -> None:
    """A wrong option ends with status 2."""
    assert invoke("demo", "--loud").exit_code == 2


def test_default_address_is_the_packages() -> None:
    """The address in the help is the one that the client uses."""
    assert inspect.signature(AsyncTrackingClient).parameters["base_url"].default == DEFAULT_BASE_URL


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_missing_extra(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra the command is one sentence that says how to install it."""
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(SystemExit) as caught:
        main()

    told = f'error: the command line needs {name}: pip install "retailrocket-async[cli]"\n'
    assert (2, told) == (caught.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["demo", "emulate"])
def test_missing_emulator(name: str) -> None:
    """Without the emulator's extra the commands that need it say how to install it."""
    code = "import sys; sys.modules['uvicorn'] = None; from retailrocket_async.cli import main; main()"
    status, _, told = finished(name, code=code)

    assert (2, 'error: this command needs uvicorn: pip install "retailrocket-async[cli,emulator]"\n') == (status, told)


def test_defect_is_no_missing_extra() -> None:
    """A module of our own that is missing is a defect, and shows as one."""
    with pytest.raises(ModuleNotFoundError), needing_emulator():
        raise ModuleNotFoundError("gone", name="retailrocket_async.emulator._gone")


def test_interruption_of_any_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a command runs ends it with one word and status 130."""
    monkeypatch.setattr("retailrocket_async.cli._check.credentials", interrupted)
    result = invoke("check", env={"RETAILROCKET_API_KEY": "key", "RETAILROCKET_PARTNER_ID": "shop"})

    assert (130, "interrupted\n") == (result.exit_code, result.stderr)


def interrupted(*_: object) -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


def test_interruption_while_starting() -> None:
    """Ctrl-C while all is still being imported is status 130 and no traceback."""
    code = f"""
import sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "retailrocket_async.cli._app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
{MAIN}
"""

    assert (130, "", "") == finished("demo", code=code)


@pytest.mark.parametrize("name", ["demo", "emulate"])
def test_interruption_while_the_emulator_is_imported(name: str) -> None:
    """Ctrl-C while the extra is being imported ends a command like Ctrl-C at any other time."""
    code = f"""
import sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "uvicorn":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
{MAIN}
"""

    assert (130, "", "interrupted\n") == finished(name, code=code)


def test_package_does_not_know_its_command_line() -> None:
    """Importing the package imports neither the command line nor what it needs."""
    code = "import sys, retailrocket_async; print({'retailrocket_async.cli', 'typer'} & set(sys.modules))"

    assert (0, "set()\n", "") == finished(code=code)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "--base-url", "http://127.0.0.1:9/1.0/"),
        ("check", "--base-url", "http://example.com/"),
        ("check", "--base-url", "nonsense"),
        ("send", "-", "--base-url", "http://127.0.0.1:9/", "--give-up-after", "0"),
    ],
)
@pytest.mark.parametrize("key", ["s3cret-key", "s3cret key", "s3cret-key\n", "s3cret\u2028key"])
def test_key_is_never_printed(arguments: tuple[str, ...], key: str) -> None:
    """Whatever goes wrong, no part of the key is printed."""
    line = b'{"view": {"sessionExternalId": "a", "productId": 1}}\n'
    env = {
        "RETAILROCKET_API_KEY": key,
        "RETAILROCKET_PARTNER_ID": "shop",
        "RETAILROCKET_BASE_URL": "http://127.0.0.1:9/",
    }
    result = invoke(*arguments, env=env, stdin=line)

    assert result.exit_code in (1, 2)
    assert "s3cret" not in result.stdout + result.stderr


def test_key_as_an_argument_is_refused_unread() -> None:
    """There is no option for the key, and who tries one does not see it printed."""
    result = invoke("check", "--api-key=s3cret")

    assert result.exit_code == 2
    assert "s3cret" not in result.stdout + result.stderr
