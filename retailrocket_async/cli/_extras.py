"""Explains in one sentence which extra to install, if a command needs an optional library that is missing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from retailrocket_async.cli._terminal import fail

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager


@contextmanager
def needing(extra: str, *libraries: str, what: str = "this command") -> Generator[None]:
    """Exit with one sentence and status 2 if an import inside the block fails because a library is missing.

    Args:
        extra: the extra that installs the libraries, or several extras separated by commas.
        libraries: the modules that the extra installs. If another module is missing, the ModuleNotFoundError is raised.
        what: the subject of the sentence; default ``"this command"``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in libraries:
            raise
        fail(f'{what} needs {library.replace("_", "-")}: pip install "retailrocket-async[{extra}]"')


def needing_emulator() -> AbstractContextManager[None]:
    """Return a context manager in which a command imports the emulator; see `needing`."""
    return needing("cli,emulator", "starlette", "uvicorn")
