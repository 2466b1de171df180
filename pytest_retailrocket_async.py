"""The pytest plugin of retailrocket-async: fixtures, and an ini option that keeps a test run away from the real API.

pytest imports this module in every run, even if no test uses a fixture. Importing the package and httpx takes a good
part of a second. So this module is outside of the package, and only the fixtures import the package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from retailrocket_async.emulator import EmulatorProcess
    from retailrocket_async.testing import RecordingClient

_SWITCH = "RETAILROCKET_TEST_MODE"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option `retailrocket_test_mode`."""
    text = f"set {_SWITCH}=1 for the run, unless it is set: clients send to this host only (default: false)"
    parser.addini("retailrocket_test_mode", text, type="bool", default=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    """Set RETAILROCKET_TEST_MODE=1 if the ini option is on and the variable is not set.

    The variable is set before pytest loads any conftest.py, because a conftest.py may import the shop's code.
    """
    if early_config.getini("retailrocket_test_mode") and _SWITCH not in os.environ:
        os.environ[_SWITCH] = "1"
        early_config.add_cleanup(_switch_off)
    return (yield)


def _switch_off() -> None:
    os.environ.pop(_SWITCH, None)


@pytest.fixture
def tracked() -> RecordingClient:
    """Return a client that sends nothing and records events; see `retailrocket_async.testing.RecordingClient`."""
    from retailrocket_async.testing import RecordingClient  # noqa: PLC0415

    return RecordingClient()


@pytest.fixture
def retailrocket_emulator(_retailrocket_emulator: EmulatorProcess) -> EmulatorProcess:
    """Return an emulator of the API: one process for the session, reset before each test (extra ``emulator``)."""
    _retailrocket_emulator.restore()
    return _retailrocket_emulator


@pytest.fixture(scope="session")
def _retailrocket_emulator() -> Iterator[EmulatorProcess]:
    try:
        from retailrocket_async.emulator import emulator_process  # noqa: PLC0415
    except ModuleNotFoundError as error:
        pytest.fail(
            f"the fixture retailrocket_emulator needs {error.name}: pip install 'retailrocket-async[emulator]'",
            pytrace=False,
        )
    with emulator_process() as emulator:
        yield emulator
