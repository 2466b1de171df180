"""Tests of the fixture `virtual_clock`: each test gets its own loop with virtual time; its errors fail the test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]

CONFTEST = """
from tests.conftest import pytest_asyncio_loop_factories, virtual_clock
"""

TESTS = """
import asyncio

async def test_days(virtual_clock):
    assert virtual_clock.time() < 1.0
    await asyncio.sleep(86_400.0)
    assert 86_400.0 <= virtual_clock.time() < 86_401.0

async def test_days_again(virtual_clock):
    assert virtual_clock.time() < 1.0
    asyncio.create_task(asyncio.sleep(86_400.0))

async def test_real():
    assert not hasattr(asyncio.get_running_loop(), "checks")

async def test_stuck(virtual_clock):
    await asyncio.Event().wait()

async def test_check_in_a_turn(virtual_clock):
    virtual_clock.checks.append(lambda: 1 / 0)
    await asyncio.sleep(1.0)

async def test_check_in_the_last_turn(virtual_clock):
    virtual_clock.checks.append(lambda: 1 / 0)
"""


def test_virtual_clock(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests that use `virtual_clock` get virtual time, which starts at 0; a stuck loop fails the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)

    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    outcomes = ran.parseoutcomes()
    assert {"passed": 3, "failed": 3, "errors": 2} == {name: outcomes[name] for name in ("passed", "failed", "errors")}
    ran.stdout.fnmatch_lines_random(["FAILED *::test_stuck - *Stuck*", "FAILED *::test_check_in_the_last_turn*"])
