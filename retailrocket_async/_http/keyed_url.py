"""A URL that shows the credentials to the connection alone.

The key belongs in the query string (API document, "Query"), where everything that prints a URL would print it. Every
form of a `KeyedURL` that is printed, logged, copied or compared lacks the query. Only `raw_path`, which the connection
writes to the socket, has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._http.credentials import Credentials


class KeyedURL(httpx.URL):
    """The URL of requests with the credentials as they are at its construction.

    Args:
        url: the URL without a query.
        credentials: the credentials.

    Attributes:
        serial: `Credentials.serial` at construction.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        super().__init__(url)
        target = credentials.target(super().raw_path)
        # In a function, as tools that print attributes do not look into one, and pickle refuses it.
        self._target: Callable[[], bytes] = lambda: target
        self.serial = credentials.serial

    @property
    def raw_path(self) -> bytes:
        return self._target()

    @property
    def raw(self) -> Any:  # noqa: ANN401 - a class that httpx does not export
        """Return the parts as older transports read them, without the query: only `raw_path` has it."""
        return super().copy_with().raw
