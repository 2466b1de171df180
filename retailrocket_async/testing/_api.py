"""An API in memory for `RecordingClient`. It accepts every request to which no fault applies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from ._fault import Fault


class InMemoryApi:
    """Answers the requests of an HTTP client inside the process, without a network.

    Attributes:
        faults: the pending faults, in order; only the first fault that fits a request applies to the request.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def http_client(self) -> httpx.AsyncClient:
        """Return an HTTP client whose requests this object answers. This client has no connections to close."""
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
