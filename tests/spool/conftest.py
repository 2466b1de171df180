"""What the tests of the spool share: an emulator of the API, and the file of a spool."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from retailrocket_async._spool.file import SpoolFile
from retailrocket_async.emulator import Settings, running_emulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator


@pytest.fixture
async def emulator() -> AsyncGenerator[RunningEmulator]:
    """An emulator of the API in this loop, without a request limit."""
    async with running_emulator(Settings(limit=None)) as running:
        yield running


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., SpoolFile]]:
    """Makes the file of a spool with that name in the test's directory; closes it when the test ends."""
    with ExitStack() as made:
        yield lambda name="s", **options: made.enter_context(closing(SpoolFile(tmp_path / name, **options)))


@pytest.fixture
def file(make: Callable[..., SpoolFile]) -> SpoolFile:
    """An open, empty spool."""
    opened = make("spool")
    opened.open()
    return opened
