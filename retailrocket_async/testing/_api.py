"""The API as far as a recording client needs it: it accepts what comes, unless it is to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from ._fault import Fault


class InMemoryApi:
    """Answers requests that never leave the process.

    Attributes:
        faults: what is still to go wrong, in order: a request gets the first one that fits it.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def http_client(self) -> httpx.AsyncClient:
        """Return a client whose requests come here; it has no connections, so nobody needs to close it."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        fault = next((fault for fault in self.faults if fault.fits(request)), None)
        if fault is None:
            return httpx.Response(200, json={})
        if fault.times is not None:
            fault.times -= 1
            if not fault.times:
                self.faults.remove(fault)
        return fault.answer()
