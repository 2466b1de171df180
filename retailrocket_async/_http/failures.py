"""Translates an exception of httpx into the kind of failure that a `Reply` states."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from retailrocket_async._http.reply import FailureKind

_POOL_IS_SHUT: Final = (
    "cannot schedule new futures",
    "Executor shutdown has been called",
    # This error is raised if the module of the thread pools is imported for the first time after the shutdown.
    "can't register atexit after shutdown",
)
"""How the messages of the errors begin that `ThreadPoolExecutor` raises after its shutdown."""

_NO_NAMES: Final = "asyncio resolves no more names, as its thread pool is shut down (the main thread has ended?)"


def failure_kind(error: Exception, *, closed: bool) -> FailureKind:  # noqa: PLR0911 - a table
    """Return the kind of failure that ended a request.

    Args:
        error: the exception.
        closed: whether the HTTP client of the request is closed.
    """
    match error:
        case httpx.ConnectError():
            return _connect_kind(error)
        case httpx.ConnectTimeout():
            return "connect"
        case httpx.PoolTimeout():
            return "pool"
        case httpx.TimeoutException() | TimeoutError():
            return "timeout"
        case RuntimeError() if closed:
            return "closed"
        case RuntimeError() if _lacks_pool(error):
            return "name"
        case _:
            return "broken"


def failure_detail(error: Exception) -> str:
    """Return `Reply.detail` for an exception: the name of its type, or a sentence without the exception's text."""
    return _NO_NAMES if _lacks_pool(error) else type(error).__name__


def _lacks_pool(error: Exception) -> bool:
    """Whether asyncio could not resolve a host name, because asyncio's thread pool is shut down."""
    return isinstance(error, RuntimeError) and str(error).startswith(_POOL_IS_SHUT)


def _connect_kind(error: BaseException) -> FailureKind:
    """Return which step of connecting failed: ``"name"``, ``"tls"`` or ``"connect"``.

    httpx raises the same class of error for all steps, so look for the step in the causes of the error.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, socket.gaierror):
            return "name"
        if isinstance(seen, ssl.SSLError):
            return "tls"
        seen = seen.__cause__ or seen.__context__
    return "connect"
