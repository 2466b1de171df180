"""Fixtures that the tests of the command line share: an emulator to which the commands send."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import EmulatorProcess, emulator_process

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def emulator_of_all_tests() -> Generator[EmulatorProcess]:
    """Provide an emulator in its own process."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(emulator_of_all_tests: EmulatorProcess) -> EmulatorProcess:
    """Restore the state that the emulator had after its start, and return the emulator."""
    emulator_of_all_tests.restore()
    return emulator_of_all_tests
