"""Tests of the command line as a whole: help, version, missing extras, and that the key is never printed."""

from __future__ import annotations

import importlib
import inspect
import io
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from retailrocket_async import AsyncTrackingClient
from retailrocket_async.cli import main
from retailrocket_async.cli._credentials import DEFAULT_BASE_URL
from retailrocket_async.cli._extras import needing_emulator
from tests.support.command import Interrupting, finished, run_command, unimported

COMMANDS = ("demo", "send", "check", "emulate", "relay")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    """If a command's help is printed, it has an example and explains the exit statuses."""
    output = run_command(name, "--help").stdout

    assert f"  retailrocket-async {name}" in output
    assert "Exit status: 0" in output


def test_help_names_every_command() -> None:
    """If the help is printed, it lists all commands."""
    output = run_command("--help").stdout

    assert [name for name in COMMANDS if f" {name} " not in output] == []


def test_help_is_plain_in_a_pipe() -> None:
    """If the help is not printed to a terminal, it has no control characters except line ends."""
    help_text = run_command("send", "--help").stdout

    assert {letter for letter in help_text if not letter.isprintable()} == {"\n"}


@pytest.mark.parametrize(("begun", "completed"), [("se", "send"), ("send --wat", "--watch"), ("spool de", "dead")])
def test_shells_complete(begun: str, completed: str) -> None:
    """If a shell asks for completions, commands and options are completed."""
    words = ["retailrocket-async", *begun.split()]
    asked = {
        "_RETAILROCKET_ASYNC_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }

    assert completed in run_command(env=asked).stdout.split()


def test_version() -> None:
    """If `--version` is given, the version is printed."""
    assert run_command("--version").stdout.startswith("retailrocket-async ")


def test_version_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the package is a source tree that is not installed, `--version` says that the version is unknown."""
    monkeypatch.setattr("importlib.metadata.version", uninstalled)

    assert run_command("--version").stdout == "retailrocket-async unknown: a source tree that is not installed\n"


def uninstalled(name: str) -> str:
    """Raise the error of `importlib.metadata.version` for a package that is not installed."""
    raise PackageNotFoundError(name)


def test_module_is_the_command() -> None:
    """`python -m retailrocket_async` runs the same command line as `retailrocket-async`."""
    status, output, _ = finished("--version")

    assert (0, "retailrocket-async ") == (status, output[:19])


def test_module_can_be_imported() -> None:
    """If `retailrocket_async.__main__` is imported, no command is run."""
    assert importlib.import_module("retailrocket_async.__main__").main is main


def test_outputs_that_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a program has replaced the standard outputs by its own objects, the command line still runs."""
    out = io.StringIO()
    monkeypatch.setattr("sys.argv", ["retailrocket-async", "--version"])
    monkeypatch.setattr("sys.stdout", out)

    with pytest.raises(SystemExit):
        main()

    assert out.getvalue().startswith("retailrocket-async ")


def test_unknown_option_is_a_usage_error() -> None:
    """If an option is unknown, the exit status is 2."""
    assert run_command("demo", "--loud").exit_code == 2


def test_default_address_is_the_packages() -> None:
    """If no address is given, commands use the default address of `AsyncTrackingClient`."""
    assert inspect.signature(AsyncTrackingClient).parameters["base_url"].default == DEFAULT_BASE_URL


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_missing_extra(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If a library of the extra `cli` is missing, the command prints one sentence that says how to install it."""
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(SystemExit) as caught:
        main()

    output = f'error: the command line needs {name}: pip install "retailrocket-async[cli]"\n'
    assert (2, output) == (caught.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["demo", "emulate"])
def test_missing_emulator(name: str) -> None:
    """If a library of the extra `emulator` is missing, commands that need it say how to install it."""
    with unimported("retailrocket_async.emulator", missing="uvicorn"):
        result = run_command(name)

    advice = 'error: this command needs uvicorn: pip install "retailrocket-async[cli,emulator]"\n'
    assert (2, advice) == (result.exit_code, result.stderr)


def test_defect_is_no_missing_extra() -> None:
    """If a module of the package itself is missing, this is a defect, so the original error is raised."""
    with pytest.raises(ModuleNotFoundError), needing_emulator():
        raise ModuleNotFoundError("gone", name="retailrocket_async.emulator._gone")


def test_interruption_of_any_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Ctrl-C is pressed while a command runs, the command prints "interrupted" and exits with status 130."""
    monkeypatch.setattr("retailrocket_async.cli._check.credentials", interrupted)
    result = run_command("check", env={"RETAILROCKET_API_KEY": "key", "RETAILROCKET_PARTNER_ID": "shop"})

    assert (130, "interrupted\n") == (result.exit_code, result.stderr)


def interrupted(*_: object) -> None:
    """Raise `KeyboardInterrupt`, as Ctrl-C does."""
    raise KeyboardInterrupt


def test_interruption_while_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Ctrl-C is pressed while the command line is imported, the exit status is 130, without a traceback."""
    monkeypatch.setattr(sys, "meta_path", [Interrupting("retailrocket_async.cli._app"), *sys.meta_path])
    with unimported("retailrocket_async.cli._app"):
        result = run_command("demo")

    assert (130, "") == (result.exit_code, result.output)


@pytest.mark.parametrize("name", ["demo", "emulate"])
def test_interruption_while_the_emulator_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Ctrl-C is pressed while the emulator is imported, the command prints "interrupted", with status 130."""
    monkeypatch.setattr(sys, "meta_path", [Interrupting("uvicorn"), *sys.meta_path])
    with unimported("retailrocket_async.emulator", "uvicorn"):
        result = run_command(name)

    assert (130, "", "interrupted\n") == (result.exit_code, result.stdout, result.stderr)


def test_package_does_not_know_its_command_line() -> None:
    """If the package is imported, neither the command line nor its libraries are imported."""
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
    """If a command fails in any way, no part of the key is printed."""
    line = b'{"view": {"sessionExternalId": "a", "productId": 1}}\n'
    env = {
        "RETAILROCKET_API_KEY": key,
        "RETAILROCKET_PARTNER_ID": "shop",
        "RETAILROCKET_BASE_URL": "http://127.0.0.1:9/",
    }
    result = run_command(*arguments, env=env, stdin=line)

    assert result.exit_code in (1, 2)
    assert "s3cret" not in result.stdout + result.stderr


def test_key_as_an_argument_is_refused_unread() -> None:
    """If the key is given as an argument, the command prints an error that does not contain the key."""
    result = run_command("check", "--api-key=s3cret")

    assert result.exit_code == 2
    assert "s3cret" not in result.stdout + result.stderr
