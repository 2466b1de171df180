"""The pytest plugin has fixtures and an option, and imports the package only when a fixture is used."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGIN = "pytest_retailrocket_async"

WHAT_IT_LOADS = f"""
import sys, pytest
before = set(sys.modules)
import {PLUGIN}
print(sorted(sys.modules.keys() - before))
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pytest.RunResult]:
    """Return a function that runs a test file with the plugin, in its own process."""
    # Most other installed plugins take longer to load than the tests to run, so they are not loaded.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugins = ("-p", "pytest_asyncio.plugin", "-p", "anyio.pytest_plugin", "-p", PLUGIN, "-p", "no:cacheprovider")
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")

    def run(source: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess(*plugins, "-W", "error")

    return run


def test_it_is_found_by_pytest() -> None:
    """If the package is installed, an entry point makes pytest load the plugin."""
    [entry] = [entry for entry in metadata.entry_points(group="pytest11") if entry.name == PLUGIN]

    assert (PLUGIN, "retailrocket-async") == (entry.value, entry.dist and entry.dist.name)


def test_its_import_is_cheap() -> None:
    """If the plugin is loaded, neither the package nor httpx is imported."""
    process = subprocess.run([sys.executable, "-c", WHAT_IT_LOADS], capture_output=True, text=True, check=True)

    assert f"['{PLUGIN}']\n" == process.stdout


USED = """
import asyncio
import sys

import pytest

def test_nothing_is_loaded_yet():
    assert not {"retailrocket_async", "httpx", "attrs"} & sys.modules.keys()

def test_sync(tracked):
    asyncio.run(tracked.view(session_external_id="visitor", product_id=1))
    assert tracked.events[0].product_id == 1

async def test_async(tracked):
    assert tracked.events == []
    receipt = await tracked.view(session_external_id="visitor", product_id=2)
    assert (await receipt).status == 200

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio(tracked, anyio_backend):
    receipt = await tracked.view(session_external_id="visitor", product_id=3)
    assert (await receipt).status == 200

async def send_one(emulator):
    from retailrocket_async import AsyncTrackingClient

    async with AsyncTrackingClient(emulator.api_key, emulator.partner_id, base_url=emulator.url) as client:
        await client.view(session_external_id="visitor", product_id=4)

async def test_emulator(retailrocket_emulator):
    retailrocket_emulator.fail_with("status", status=429)
    await send_one(retailrocket_emulator)
    assert [event["fields"]["productId"] for event in retailrocket_emulator.events("view")] == [4]
    assert retailrocket_emulator.stats()["requests"] == 2
    # These settings must not last:
    retailrocket_emulator.configure(api_key="another", latency=60.0)
    retailrocket_emulator.fail_with("stall", times=None)

async def test_emulator_again(retailrocket_emulator):
    assert retailrocket_emulator.events() == []
    await send_one(retailrocket_emulator)
    assert len(retailrocket_emulator.events("view")) == 1
"""


def test_the_fixtures(run: Callable[[str], pytest.RunResult]) -> None:
    """Each test, sync or async, gets a new client from the fixture `tracked`, and the emulator without old events."""
    run(USED).assert_outcomes(passed=6)


WITHOUT = """
import sys

# As if it were not installed.
sys.modules["starlette"] = None
"""


def test_a_missing_extra_is_told(run: Callable[[str], pytest.RunResult], pytester: pytest.Pytester) -> None:
    """If the extra is missing, the emulator's fixture fails with one line that says what to install."""
    pytester.makeconftest(WITHOUT)

    result = run("def test_emulator(retailrocket_emulator): pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs starlette*: pip install 'retailrocket-async[[]emulator[]]'"])
    result.stdout.no_fnmatch_line("*Traceback*")


SWITCHED = """
import os

def test_switch():
    assert os.environ.get("RETAILROCKET_TEST_MODE") == {expected!r}
"""


def expect(expected: str | None, pytester: pytest.Pytester, ini: str = "") -> None:
    """Run a test that fails unless the variable RETAILROCKET_TEST_MODE has the expected value."""
    pytester.makeini(f"[pytest]\nasyncio_default_fixture_loop_scope = function\n{ini}\n")
    # The variable must be set before a conftest runs, because a conftest may import the shop's code and create its
    # client.
    pytester.makeconftest(f"import os\n\nassert os.environ.get('RETAILROCKET_TEST_MODE') == {expected!r}")
    pytester.makepyfile(SWITCHED.format(expected=expected))
    pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_switch_is_on_for_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ini option is set, the variable RETAILROCKET_TEST_MODE is set during the run, and unset afterwards."""
    monkeypatch.delenv("RETAILROCKET_TEST_MODE", raising=False)
    expect("1", pytester, "retailrocket_test_mode = true")

    assert "RETAILROCKET_TEST_MODE" not in os.environ


def test_the_switch_is_off_unless_it_is_asked_for(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ini option is not set, the variable RETAILROCKET_TEST_MODE is not set."""
    monkeypatch.delenv("RETAILROCKET_TEST_MODE", raising=False)
    expect(None, pytester)


def test_the_environment_wins(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the environment sets the variable, the plugin does not change it, so a run can use the real API on purpose."""
    monkeypatch.setenv("RETAILROCKET_TEST_MODE", "0")
    expect("0", pytester, "retailrocket_test_mode = true")

    assert "0" == os.environ["RETAILROCKET_TEST_MODE"]
