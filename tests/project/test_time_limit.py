"""Tests of the time limit for tests: if a test hangs, this test fails, and no other test does."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

import pytest
from coverage import CoverageData

ROOT = Path(__file__).parents[2]

WITHOUT = [f"-pno:{plugin}" for plugin in ("anyio", "asyncio", "cacheprovider", "faker", "hypothesispytest")]
STACKS = ("hang_in_thread", "test_hung_child", "hang_in_wait", "hang_in_task", "hang_in_callback", "hung_teardown")

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]

CONFTEST = """
from tests.support.time_limit import TimeLimit

def pytest_configure(config):
    config.pluginmanager.register(TimeLimit(3600))
"""

HANGING = '''
import asyncio, signal, subprocess, sys, threading, time

import pytest

import reached

FOREVER = """
import fcntl, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
alive = open("alive", "w")
fcntl.flock(alive, fcntl.LOCK_SH)
print(flush=True)
time.sleep(3600)
"""


def soon():
    """Let the time of this test be over in a moment: how fast the machine is does not matter then."""
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
    signal.setitimer(signal.ITIMER_REAL, 0.1, 1)


def test_before():
    reached.one()


def test_hung_thread():
    thread = threading.Thread(target=hang_in_thread)
    thread.start()
    soon()
    thread.join()


def hang_in_thread():
    while True:
        time.sleep(3600)


def test_hung_child():
    with subprocess.Popen([sys.executable, "-c", FOREVER], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        soon()
        child.wait()


def test_hung_wait_of_loop():
    async def hang_in_wait():
        await asyncio.Event().wait()

    soon()
    asyncio.run(hang_in_wait())


def test_hung_task():
    async def hang_in_task():
        while True:
            reached.two()

    async def start():
        await asyncio.wait([asyncio.create_task(hang_in_task())])

    soon()
    asyncio.run(start())


def test_hung_callback():
    def hang_in_callback():
        while True:
            pass

    async def start():
        asyncio.get_running_loop().call_soon(hang_in_callback)
        await asyncio.Event().wait()

    soon()
    asyncio.run(start())


def test_hung_executor():
    async def start():
        await asyncio.to_thread(time.sleep, 5)

    soon()
    asyncio.run(start())


def test_swallowed():
    soon()
    try:
        hang_in_thread()
    except BaseException:
        pass


def test_task_that_refuses_to_end():
    async def refuse_to_end():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    soon()
    asyncio.run(refuse_to_end())


@pytest.fixture(scope="module")
def module_fixture():
    yield "alive"
    reached.three()


@pytest.fixture
def hung_setup():
    soon()
    hang_in_thread()


@pytest.fixture
def hung_teardown(module_fixture):
    with subprocess.Popen([sys.executable, "-c", FOREVER], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield
        soon()
        child.terminate()


def test_hung_setup(hung_setup):
    pass


def test_hung_teardown(hung_teardown):
    pass


def test_after(module_fixture):
    assert module_fixture == "alive"
    reached.four()
'''

REACHED = """
def one():
    return 1

def two():
    return 2

def three():
    return 3

def four():
    return 4
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_test_that_hangs_fails_alone(
    processes: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a test's loop, thread or child hangs, this test fails with stacks; the coverage of other tests is kept."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(reached=REACHED, test_hanging=HANGING)
    pytester.path.joinpath(".coveragerc").write_text("[run]\nparallel = true\npatch = subprocess, _exit\nsource = .\n")
    ran = pytester.run(
        *(sys.executable, "-m", "coverage", "run", "-m", "pytest", "-n", processes, *WITHOUT),
    )
    pytester.run(sys.executable, "-m", "coverage", "combine")
    data = CoverageData(str(pytester.path / ".coverage"))
    data.read()
    [reached] = [file for file in data.measured_files() if file.endswith("reached.py")]

    ran.assert_outcomes(passed=3, failed=8, errors=2)
    assert {2, 5, 8, 11} <= set(data.lines(reached) or [])
    ran.stdout.fnmatch_lines_random([f"* in {where}" for where in STACKS])
    ran.stdout.no_fnmatch_line("*crashed*")
    with (pytester.path / "alive").open("w") as alive:
        # The lock is free only if every child process, which inherited the file, has ended.
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
