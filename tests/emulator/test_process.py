"""An emulator in its own process, and its command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retailrocket_async.emulator import EmulatorError, EmulatorProcess, Fault, Settings, emulator_process
from retailrocket_async.emulator._command import parser, settings_of
from retailrocket_async.emulator._process import end

if TYPE_CHECKING:
    from collections.abc import Generator

VIEW: dict[str, Any] = {"sessionExternalId": "s1", "productId": 123456}
KEY = "s3cret"


@pytest.fixture(scope="module")
def shared_process() -> Generator[EmulatorProcess]:
    """Provide one emulator, in its own process, for all tests that do not start their own emulator."""
    with emulator_process(Settings(limit=None, api_key=KEY)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared_process: EmulatorProcess) -> EmulatorProcess:
    """Provide the emulator in the state that it has after its start."""
    shared_process.restore()
    return shared_process


def send(url: str, event: object = VIEW, key: str = KEY) -> int:
    """Post one event without an event loop. Return the status."""
    request = urllib.request.Request(
        f"{url}view?apiKey={key}&partnerId=dev-partner",
        json.dumps(event).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_process_is_controlled_from_outside(emulator: EmulatorProcess) -> None:
    """If an emulator runs in its own process, every method of its handle shows or changes the emulator's state."""
    statuses = [send(emulator.url), send(emulator.url, {})]
    seen = (
        [event["seq"] for event in emulator.events(name="view", session="s1", after=0, limit=9)],
        [record["number"] for record in emulator.requests(limit=9)],
        [record["status"] for record in emulator.refused()],
        emulator.stats()["total_events"],
    )
    emulator.add_faults([{"kind": "status", "status": 500}, Fault(kind="status", status=502, times=9)])
    statuses += [send(emulator.url), send(emulator.url)]
    left = [fault["times"] for fault in emulator.faults()]
    emulator.clear_faults()
    settings = emulator.configure(forbidden=True)
    statuses.append(send(emulator.url))
    emulator.reset()
    after = emulator.stats()["requests"]

    assert ([200, 400, 500, 502, 403], ([1], [1, 2], [400], 1), [8], True, 0) == (
        statuses,
        seen,
        left,
        settings["forbidden"],
        after,
    )


def test_a_process_refuses_wrong_settings(emulator: EmulatorProcess) -> None:
    """If the emulator refuses a setting, `EmulatorError` is raised with the emulator's reason."""
    with pytest.raises(EmulatorError, match="limit must be"):
        emulator.configure(limit=0)


def test_a_process_ends_with_its_block() -> None:
    """If the `with` block ends, the process ends, even while a request stalls."""
    with emulator_process() as emulator:
        emulator.add_faults([{"kind": "stall"}])
        port = httpx.URL(emulator.root).port or 0
        stalled = socket.create_connection(("127.0.0.1", port))
        stalled.sendall(b"POST /1.0/view HTTP/1.1\r\nHost: e\r\nContent-Length: 0\r\n\r\n")
        begun = perf_counter()
    took = perf_counter() - begun
    stalled.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))

    assert took < 5


def test_a_process_ends_with_the_one_that_started_it() -> None:
    """If the parent is killed, the emulator ends."""
    code = (
        "import os, signal, sys\n"
        "from retailrocket_async.emulator import emulator_process\n"
        "with emulator_process() as emulator:\n"
        "    print(emulator.root, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        root = httpx.URL(parent.stdout.readline().strip())
        with socket.create_connection((root.host, root.port or 0), timeout=10) as connection:
            parent.kill()
            parent.wait()
            rest = connection.recv(1)

    assert b"" == rest


def test_the_command_may_end_with_its_input() -> None:
    """If `--until-stdin-closes` is given and standard input closes, the command exits with status 0."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "retailrocket_async.emulator", "--until-stdin-closes"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        out, err = process.communicate("more", timeout=10)

    assert ("", "", 0) == (out, err, process.returncode)


def test_a_process_that_will_not_end_is_killed() -> None:
    """If the process ignores SIGTERM, `end` kills the process."""
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        end(stubborn, 0.05)

    assert stubborn.returncode != 0


def test_a_process_that_cannot_start_is_an_error() -> None:
    """If the port is in use, an error is raised without waiting."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(EmulatorError, match="did not start"),
        emulator_process(port=taken.getsockname()[1]),
    ):
        pass


def test_a_process_that_starts_too_slowly_is_an_error() -> None:
    """If the emulator's process does not start in time, the process is killed, and an error is raised."""
    with pytest.raises(EmulatorError, match="did not start"), emulator_process(startup_timeout=0.001):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for another process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_one_line_and_ends_in_order(number: signal.Signals) -> None:
    """The command prints one line, its address, and exits with status 0 when it gets SIGINT or SIGTERM."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "retailrocket_async.emulator", "--api-key", KEY, "--limit", "none"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        root = line.removeprefix("emulator listening on ").strip()
        status = send(f"{root}/1.0/")
        process.send_signal(number)
        out, err = process.communicate(timeout=10)

    assert (True, 200, "", "", 0) == (root.startswith("http://127.0.0.1:"), status, out, err, process.returncode)


@pytest.mark.skipif(sys.platform == "win32", reason="no sessions")
def test_a_process_is_out_of_the_terminals_reach(emulator: EmulatorProcess) -> None:
    """If Ctrl-C is pressed on the terminal, the emulator continues, because its process has its own session."""
    assert os.getsid(emulator.pid) == emulator.pid


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc")
def test_the_key_is_no_argument(emulator: EmulatorProcess) -> None:
    """The arguments of the emulator's process, which every user can read, do not contain the key."""
    arguments = Path(f"/proc/{emulator.pid}/cmdline").read_bytes()
    statuses = [send(emulator.url), send(emulator.url, key="dev-api-key")]

    assert (b"partner-id" in arguments, KEY.encode() in arguments, [200, 401]) == (True, False, statuses)


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no argument gives the key, the command reads the key from the environment; `--help` does not show the key."""
    monkeypatch.setenv("RETAILROCKET_EMULATOR_API_KEY", "s3cret")
    made = parser()

    assert settings_of(made.parse_args([])).api_key == "s3cret"
    assert settings_of(made.parse_args(["--api-key=other"])).api_key == "other"
    assert "s3cret" not in made.format_help()


def test_the_command_spares_the_collector_its_modules() -> None:
    """If the module runs as a command, it calls `gc.freeze`; if the module is only imported, it does not."""
    code = (
        "import gc, runpy, sys\n"
        "import retailrocket_async.emulator.__main__\n"
        "sys.stderr.write(f'{gc.get_freeze_count() > 0} ')\n"
        "del sys.modules['retailrocket_async.emulator.__main__']\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n"
        "    runpy.run_module('retailrocket_async.emulator', run_name='__main__')\n"
        "except SystemExit:\n"
        "    sys.stderr.write(f'{gc.get_freeze_count() > 10_000}')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert "False True" == run.stderr
