"""Tests of the command `emulate`: it runs the emulator on a port, and prints the settings for other commands."""

from __future__ import annotations

import signal
import socket
from inspect import signature
from typing import TYPE_CHECKING

import httpx
import pytest

from retailrocket_async.cli._emulate import emulate
from retailrocket_async.emulator._command import parser
from tests.support.command import FULL, GONE, MAIN, NO_SPACE, PLAIN, UNSET, posix, run_command, started

if TYPE_CHECKING:
    import subprocess

KEYS = {"RETAILROCKET_API_KEY": "dev-api-key", "RETAILROCKET_PARTNER_ID": "dev-partner"}


def announced(process: subprocess.Popen[bytes]) -> list[str]:
    """Return the eight lines that an emulator prints when it is ready."""
    assert process.stdout is not None
    return [process.stdout.readline().decode().rstrip("\n") for _ in range(8)]


def pasted(lines: list[str]) -> dict[str, str]:
    """Return the environment variables that the printed `export` lines set."""
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_printed_lines_are_all_that_is_needed(number: signal.Signals) -> None:
    """If the printed `export` lines are run, another command can send; a signal ends the emulator with status 0."""
    line = b'{"view": {"sessionExternalId": "a", "productId": 1}}\n'
    with started("emulate", "--port", "0") as process:
        lines = announced(process)
        env = {**PLAIN, **pasted(lines)}
        result = run_command("send", "-", env=env, stdin=line)
        process.send_signal(number)
        output = process.communicate()[1]

    assert (0, 0) == (result.exit_code, process.returncode), result.stderr
    assert output == b"stopped: 1 events in 1 requests\n"
    assert f"Watch it live at {env['RETAILROCKET_BASE_URL'].removesuffix('1.0/')}" in lines


@posix
def test_key_of_the_environment() -> None:
    """If the environment has a key, the emulator accepts this key and does not print it."""
    own = {"RETAILROCKET_API_KEY": "s3cret", "RETAILROCKET_PARTNER_ID": "my-shop"}
    with started("emulate", "--port", "0", "--batch-latency", "0", env=own) as process:
        lines = announced(process)
        env = {**PLAIN, **pasted(lines)}
        right, wrong = (
            run_command("check", env={**env, "RETAILROCKET_API_KEY": key}) for key in ("s3cret", "dev-api-key")
        )
        process.send_signal(signal.SIGINT)
        rest = b"".join(process.communicate())

    assert (0, 1) == (right.exit_code, wrong.exit_code)
    assert env["RETAILROCKET_PARTNER_ID"] == "my-shop"
    assert "s3cret" not in "".join(lines) + rest.decode()


@posix
def test_options_reach_the_emulator() -> None:
    """If latencies, unknown events or a strict order are set by options, the emulator uses them."""
    options = ("--limit", "0", "--latency", "0.25", "--batch-latency", "600", "--allow-custom", "--strict-order")
    with started("emulate", "--port", "0", *options) as process:
        env = {**PLAIN, **pasted(announced(process))}
        slow = run_command("check", "--timeout", "0.1", env=env)
        root = env["RETAILROCKET_BASE_URL"].removesuffix("1.0/")
        settings = httpx.patch(f"{root}_control/settings", json={}, trust_env=False).json()

    assert 1 == slow.exit_code
    assert "no answer" in slow.stderr
    assert {
        "limit": None,
        "latency": 0.25,
        "batch_latency": 600,
        "allow_unknown_events": True,
        "strict_order": True,
    }.items() <= settings.items()


def test_latency_of_a_batch() -> None:
    """If nothing is set, both commands take 0.3 s for a batch, and the help names the 1.5 s of the real API."""
    shown = " ".join(run_command("emulate", "--help").stdout.split())

    assert "The real API takes 1.5 s and more" in shown
    assert parser().parse_args([]).batch_latency == signature(emulate).parameters["batch_latency"].default == 0.3


def test_port_that_is_taken() -> None:
    """If the port is in use, one sentence is printed, and no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_command("emulate", "--port", port, env=UNSET)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: cannot listen on 127.0.0.1, port {port}: ")


def test_wrong_setting() -> None:
    """If the emulator refuses a setting, one sentence is printed, and no traceback."""
    result = run_command("emulate", "--latency", "inf")

    assert result.exit_code == 2
    assert result.stderr.startswith("error: latency must be a finite number of seconds")


@posix
@pytest.mark.parametrize(("output", "complaint"), [(GONE, ""), (FULL, NO_SPACE)])
def test_output_that_takes_nothing(output: str, complaint: str) -> None:
    """If standard output cannot be written, the emulator prints its address on standard error and still serves."""
    with started("emulate", "--port", "0", "--batch-latency", "0", code=f"{output}; {MAIN}") as process:
        assert process.stderr is not None
        begin = b"".join(process.stderr.readline() for _ in range(1 + bool(complaint))).decode()
        url = begin.removeprefix(f"{complaint}Emulator of the tracking API at ").removesuffix(", until Ctrl-C.\n")
        checked = run_command("check", env={**PLAIN, **KEYS, "RETAILROCKET_BASE_URL": url})
        process.send_signal(signal.SIGINT)
        rest = process.communicate()[1]

    assert (0, 0) == (checked.exit_code, process.returncode), checked.stderr
    assert rest == b"stopped: 0 events in 7 requests\n"


def test_failure_while_serving_is_not_one_of_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an error occurs after the emulator has begun to listen, the command does not say that the port is in use."""

    def unannounced(_: object) -> None:
        raise OSError

    monkeypatch.setattr("retailrocket_async.cli._emulate._announce", unannounced)

    assert "cannot listen" not in run_command("emulate", "--port", "0", env=UNSET).stderr
