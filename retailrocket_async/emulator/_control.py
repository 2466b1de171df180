"""The control side, ``/_control/``: requests that read and change a running emulator.

=========================  ==================================================================================
request                    answer or effect
=========================  ==================================================================================
``GET stats``              the counters: ``requests``, ``in_flight``, ``statuses``, ``events``,
                           ``total_events``, ``refused``, ``over_limit``, ``worst_window``, ``overlaps``,
                           ``backward_steps``, ``bytes``
``GET events``             accepted events, oldest first: ``seq``, ``request``, ``name``, ``fields``; filtered
                           by the parameters ``name``, ``session``, ``after`` (a ``seq``) and ``limit``
``GET requests``           the last requests, at most ``limit``, and never more than 1,000: ``number``,
                           ``time``, ``method``, ``path``, ``query`` (without the key), ``content_type``,
                           ``status``, ``events``, ``bytes``, ``body``, ``reasons``, ``fault``
``GET refused``            like ``GET requests``, but refused requests only
``GET violations``         the last violations of a visitor's order, at most ``limit``, and never more than 1,000:
                           ``number``, ``kind``, ``visitor``, ``request``, ``time``, ``other``, ``other_time``,
                           ``timestamp``, ``other_timestamp``; see `OrderViolation`
``GET stream``             requests and counters as they change, as server-sent events; see `_stream`
``POST reset``             forget all requests, events and violations, the window and the faults
``GET faults``             the pending faults
``POST faults``            append the faults of a JSON array, or no fault if one of them is wrong; see `Fault`
``DELETE faults``          remove the pending faults
``PATCH settings``         change settings: the body is a JSON object with some of the names in `CHANGEABLE`;
                           the answer has all settings except the key
=========================  ==================================================================================

An invalid request is answered 400 with ``{"error": "..."}``. A request that a browser sends on behalf of a
page of another site is answered 403; see `_origin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import orjson
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ._fault import Fault
from ._origin import refusal
from ._stream import stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from ._emulator import Emulator

__all__ = ["control_routes"]


def control_routes(emulator: Emulator) -> list[Route]:
    """Return the routes of the control side of *emulator*."""
    control = _Control(emulator)
    table = [
        ("stats", "GET", control.stats),
        ("events", "GET", control.events),
        ("requests", "GET", control.requests),
        ("refused", "GET", control.refused),
        ("violations", "GET", control.violations),
        ("reset", "POST", control.reset),
        ("faults", "GET", control.faults),
        ("faults", "POST", control.add_faults),
        ("faults", "DELETE", control.clear_faults),
        ("settings", "PATCH", control.configure),
    ]
    routes = [Route(f"/_control/{name}", _answering(endpoint), methods=[method]) for name, method, endpoint in table]
    return [*routes, Route("/_control/stream", control.stream, methods=["GET"])]


class _Control:
    """Handles the requests of the control side: one method for each route.

    A method takes a request, and returns JSON-ready data; `stream` returns the whole response.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    async def stats(self, _: Request) -> Any:  # noqa: ANN401 - any JSON value; likewise in the methods below
        return self._emulator.stats()

    async def events(self, request: Request) -> Any:  # noqa: ANN401
        found = self._emulator.ledger.events(
            request.query_params.get("name"),
            request.query_params.get("session"),
            _whole(request, "after") or 0,
            _whole(request, "limit"),
        )
        return [event.as_dict() for event in found]

    async def requests(self, request: Request) -> Any:  # noqa: ANN401
        return [record.as_dict() for record in self._emulator.ledger.requests(_whole(request, "limit"))]

    async def refused(self, request: Request) -> Any:  # noqa: ANN401
        return [record.as_dict() for record in self._emulator.ledger.refused(_whole(request, "limit"))]

    async def violations(self, request: Request) -> Any:  # noqa: ANN401
        return [violation.as_dict() for violation in self._emulator.order.violations(_whole(request, "limit"))]

    async def stream(self, request: Request) -> Response:
        if (reason := refusal(request)) is not None:
            return _answered(403, {"error": reason})
        last_id = request.headers.get("last-event-id") or request.query_params.get("after")
        return StreamingResponse(
            stream(self._emulator, last_id),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )

    async def reset(self, _: Request) -> Any:  # noqa: ANN401
        self._emulator.reset()
        return {}

    async def faults(self, _: Request) -> Any:  # noqa: ANN401
        return [fault.as_dict() for fault in self._emulator.faults.pending()]

    async def add_faults(self, request: Request) -> Any:  # noqa: ANN401
        data = orjson.loads(await request.body())
        if not isinstance(data, list):
            raise ValueError("the body must be an array of faults")  # noqa: TRY004 - the client's mistake: 400
        self._emulator.faults.add(*[Fault.from_dict(item) for item in cast("list[object]", data)])
        return await self.faults(request)

    async def clear_faults(self, _: Request) -> Any:  # noqa: ANN401
        self._emulator.faults.clear()
        return {}

    async def configure(self, request: Request) -> Any:  # noqa: ANN401
        data = orjson.loads(await request.body())
        if not isinstance(data, dict):
            raise ValueError("the body must be an object of settings")  # noqa: TRY004 - the client's mistake: 400
        self._emulator.configure(**cast("dict[str, object]", data))
        return self._emulator.settings.shown()


def _answering(endpoint: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        if (reason := refusal(request)) is not None:
            return _answered(403, {"error": reason})
        try:
            return _answered(200, await endpoint(request))
        except ValueError as error:
            return _answered(400, {"error": str(error)})

    return answer


def _answered(status: int, data: object) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def _whole(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be an integer of 0 or more")
    return int(text)
