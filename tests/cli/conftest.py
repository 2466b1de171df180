"""What the tests of the command line share: an emulator to send to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import EmulatorProcess, emulator_process

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def emulator_of_all_tests() -> Generator[EmulatorProcess]:
    """An emulator in a process of its own."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(emulator_of_all_tests: EmulatorProcess) -> EmulatorProcess:
    """An emulator as it is after its start."""
    emulator_of_all_tests.restore()
    return emulator_of_all_tests
