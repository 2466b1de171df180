"""Fixtures for the tests of the spool: an emulator of the API, and the file of a spool."""

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
    """Run an emulator of the API in this event loop, without a request limit."""
    async with running_emulator(Settings(limit=None)) as running:
        yield running


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., SpoolFile]]:
    """Return a function that makes a spool file in the test's directory; all files are closed when the test ends."""
    with ExitStack() as made:
        yield lambda name="s", **options: made.enter_context(closing(SpoolFile(tmp_path / name, **options)))


@pytest.fixture
def file(make: Callable[..., SpoolFile]) -> SpoolFile:
    """Return the file of an open, empty spool."""
    opened = make("spool")
    opened.open()
    return opened
