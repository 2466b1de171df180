"""The emulator, imported only by the commands that need it: it is an extra of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from retailrocket_async.cli._terminal import fail

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def needing_emulator() -> Generator[None]:
    """Make one sentence of a missing extra: import the emulator inside."""
    try:
        yield
    except ModuleNotFoundError as error:
        # Anything of our own that is missing is a defect, and shows as one.
        library = (error.name or "").partition(".")[0]
        if library not in ("starlette", "uvicorn"):
            raise
        fail(f'this command needs {library}: pip install "retailrocket-async[cli,emulator]"')
