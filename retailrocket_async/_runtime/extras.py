"""Tells users which extra to install if an optional library is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class needing:  # noqa: N801 - read as a statement: with needing("redis"): import redis
    """A context manager that tells users which extra to install if an import in its block fails.

    ::

        with needing("redis"):
            from redis.asyncio import Redis

    Args:
        extra: the extra of this package that installs the library.

    Raises:
        ImportError: a library is missing (`ModuleNotFoundError`), or lacks a name that newer versions have; the message
            says what to install. If a module of this package is missing, the error is not changed, because the package
            itself is defective then.
    """

    def __init__(self, extra: str) -> None:
        self._extra = extra

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, ImportError) or (name := error.name) is None:
            return
        library = name.partition(".")[0]
        if library == "retailrocket_async":
            return
        absent = isinstance(error, ModuleNotFoundError)
        reason = f"{library} is not installed" if absent else f"another version of {library} is needed ({error.msg})"
        message = f'{reason}: pip install "retailrocket-async[{self._extra}]"'
        raise type(error)(message, name=name, path=error.path) from None


def installed(library: str) -> bool:
    """Whether a library is installed; does not import the library."""
    try:
        return find_spec(library) is not None
    except ImportError:
        return False
