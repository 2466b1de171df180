"""A real SIGTERM or SIGINT ends the worker that the documentation shows, and no event is lost."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process
from tests.project.test_docs import ROOT, examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")

WORK = """
import asyncio, itertools, json, signal
from retailrocket_async import AsyncTrackingClient


async def work(client):
    for number in itertools.count(1):
        await client.view(session_external_id="visitor", product_id=number)
        print(number, flush=True)
        await asyncio.sleep(0.001)


def print_report(report):
    stats = report.stats
    settled = {name: getattr(stats, name) for name in ("delivered", "rejected", "abandoned", "dropped")}
    left = stats.pending + stats.in_flight + stats.waiting
    print(json.dumps([stats.tracked, settled, left, len(report.undelivered), report.clean]))


"""


def recipe() -> str:
    """Return the function `main` of the worker on the documentation's page."""
    page = ROOT / "docs" / "how-to" / "shutting-down.md"
    [source] = [example.source for example in examples(page) if "signal.SIGTERM" in example.source]
    [main] = [node for node in ast.parse(source).body if getattr(node, "name", "") == "main"]
    return ast.get_source_segment(source, main) or ""


def patient(main: str) -> str:
    """Return the source of `main` with longer timeouts, because the machine may be busy."""
    for old, new in (("timeout=10", "timeout=90"), ("from_env()", "from_env(timeout=90)")):
        assert main.count(old) == 1
        main = main.replace(old, new)
    return main


@pytest.fixture
def emulator() -> Iterator[EmulatorProcess]:
    """Provide an emulator in its own process."""
    with emulator_process() as emulator:
        yield emulator


@contextmanager
def worker(main: str, emulator: EmulatorProcess) -> Iterator[subprocess.Popen[str]]:
    """Run the worker during the block; at the end, kill the worker if it still runs."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RETAILROCKET_API_KEY": Settings().api_key,
        "RETAILROCKET_PARTNER_ID": Settings().partner_id,
        "RETAILROCKET_BASE_URL": emulator.url,
    }
    with subprocess.Popen(
        [sys.executable, "-c", f"{WORK}{main}\n\nasyncio.run(main())"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        killer = threading.Timer(100, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.kill()


def accepted_until_ended(
    process: subprocess.Popen[str], number: signal.Signals, when: Callable[[], object] = lambda: True
) -> tuple[list[int], str, str]:
    """Send the signal while the worker works. Return the accepted events, the last printed line, and the errors."""
    assert process.stdout is not None
    assert process.stderr is not None
    first = [process.stdout.readline() for _ in range(200)]
    while not when():
        first.append(process.stdout.readline())
    process.send_signal(number)
    # `communicate` would miss the lines that `readline` has buffered, so the streams are read directly.
    *others, last = process.stdout.read().splitlines()
    errors = process.stderr.read()
    process.wait()
    return [int(line) for line in first + others], last, errors


def test_the_recipe_is_short() -> None:
    """If the recipe is read, it has at most ten lines."""
    assert 0 < len(recipe().splitlines()) <= 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_loses_nothing(number: signal.Signals, emulator: EmulatorProcess) -> None:
    """If a signal ends the worker, every event accepted before is recorded once, and the exit status is 0."""
    with worker(patient(recipe()), emulator) as process:
        accepted, last, errors = accepted_until_ended(process, number)
    recorded = Counter(record["fields"]["productId"] for record in emulator.events())

    assert ("everything delivered: True", "", 0) == (last, errors, process.returncode)
    assert {1} == set(recorded.values())
    # The signal may come after an event was accepted and before its number is printed.
    assert set(accepted) <= recorded.keys() <= set(range(1, len(accepted) + 2))


def test_a_server_that_stalls_does_not_hold_the_worker(emulator: EmulatorProcess) -> None:
    """If the server never answers, the worker ends by its deadline, and its report counts every event."""
    emulator.add_faults([{"kind": "stall", "times": 1_000}])
    main = recipe()
    for old, new in (
        ("timeout=10", "timeout=1"),
        ('print("everything delivered:", report.clean)', "print_report(report)"),
    ):
        assert main.count(old) == 1
        main = main.replace(old, new)
    with worker(main, emulator) as process:
        accepted, last, errors = accepted_until_ended(
            process, signal.SIGTERM, when=lambda: emulator.faults()[0]["times"] < 1_000
        )
    tracked, settled, left, undelivered, clean = json.loads(last)

    assert (0, False, 0) == (process.returncode, clean, left), errors
    assert tracked in (len(accepted), len(accepted) + 1)
    assert (0, 0) == (settled["delivered"], settled["rejected"])
    assert tracked == settled["abandoned"] + settled["dropped"] == undelivered
    assert settled["abandoned"]
    assert [] == emulator.events()


def test_work_that_fails_is_not_hidden(emulator: EmulatorProcess) -> None:
    """If the work raises, the client is closed first, and then the error ends the process."""
    failing = patient(recipe()).replace("work(client)", "asyncio.wait_for(work(client), 0.5)")
    with worker(failing, emulator) as process:
        printed, errors = process.communicate()
    *accepted, last = printed.splitlines()

    assert ("everything delivered: True", 1) == (last, process.returncode)
    assert "TimeoutError" in errors.splitlines()[-1]
    assert len(accepted) <= len(emulator.events()) <= len(accepted) + 1
