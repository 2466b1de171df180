"""A URL that shows the key to the connection only.

The API expects the key in the query string (API document, "Query"), and everything that prints a URL also prints the
query. So a `KeyedURL` that is printed, logged, copied or compared has no query. Only `raw_path`, which the connection
writes to the socket, contains the query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._http.credentials import Credentials


class KeyedURL(httpx.URL):
    """The URL of requests, with the key that is valid when the object is made; a new key needs a new `KeyedURL`.

    Args:
        url: the URL without a query.
        credentials: the key and the shop's id.

    Attributes:
        serial: `Credentials.serial` of the key in this URL.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        super().__init__(url)
        target = credentials.target(super().raw_path)
        # The target contains the key. So it is stored inside a function: tools that print attributes do not look inside
        # functions, and pickle refuses functions.
        self._target: Callable[[], bytes] = lambda: target
        self.serial = credentials.serial

    @property
    def raw_path(self) -> bytes:
        return self._target()

    @property
    def raw(self) -> Any:  # noqa: ANN401 - a class that httpx does not export
        """The parts of the URL, as older transports read them, without the query; only `raw_path` has the query."""
        return super().copy_with().raw
