"""Finds requests that violate the order of a visitor's events, independently of the emulator's own check."""

from __future__ import annotations

import asyncio
import enum
import re
from typing import Final

_EVENT: Final = re.compile(rb'"sessionExternalId":"([^"]*)"[^{}]*?"productId":(\d+)')

_LOSS_SEEN: Final = 0.01
"""Seconds after which a server has noticed that a connection was lost. The kernel closes the connections of a killed
process at once, but the server may read the first request of its successor earlier."""

STREAM: Final = 10**9
"""Size of a range of products. The products of one range are the events of one process, in their order."""


class RequestState(enum.Enum):
    """What became of a request."""

    UNDER_WAY = "under way"
    ANSWERED = "answered"
    LOST = "lost"


class CheckedRequest:
    """A request under way, or one that has ended.

    Attributes:
        visitors: the visitors whose events the request has.
        state: what became of the request.
    """

    def __init__(self, visitors: set[bytes]) -> None:
        self.visitors = visitors
        self.state = RequestState.UNDER_WAY


class OrderCheck:
    """Counts overlapping requests, and events that are first recorded in the wrong order.

    Attributes:
        overlaps: number of requests that began while another request with events of one of their visitors was under
            way.
        disordered: number of events that were first recorded after a later event of the same visitor and process.
    """

    def __init__(self) -> None:
        self._under_way: dict[bytes, CheckedRequest] = {}
        self._last: dict[tuple[bytes, int], int] = {}
        self._recorded: set[int] = set()
        self.overlaps = 0
        self.disordered = 0

    def begin(self, body: bytes) -> CheckedRequest:
        """Enter a request whose body has arrived."""
        request = CheckedRequest({visitor for visitor, _ in _EVENT.findall(body)})
        others = {id(other): other for each in request.visitors if (other := self._under_way.get(each)) is not None}
        self._under_way.update(dict.fromkeys(request.visitors, request))
        if others:
            asyncio.get_running_loop().call_later(_LOSS_SEEN, self._judge, list(others.values()))
        return request

    def _judge(self, others: list[CheckedRequest]) -> None:
        self.overlaps += any(other.state is not RequestState.LOST for other in others)

    def record(self, body: bytes) -> None:
        """Compare the events of a request that are recorded for the first time with those recorded before."""
        for visitor, product in _EVENT.findall(body):
            number = int(product)
            if number in self._recorded:
                continue
            self._recorded.add(number)
            key = visitor, number // STREAM
            self.disordered += self._last.get(key, -1) > number
            self._last[key] = number

    def end(self, request: CheckedRequest, state: RequestState) -> None:
        """Note that a request was answered, or that its connection was lost; only the first call counts."""
        if request.state is not RequestState.UNDER_WAY:
            return
        request.state = state
        for visitor in request.visitors:
            if self._under_way.get(visitor) is request:
                del self._under_way[visitor]
