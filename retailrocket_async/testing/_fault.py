"""A fault of the API in memory: how requests fail, and which requests fail."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import attrs
import httpx

from retailrocket_async import EVENT_TYPES, ConfigurationError, Event

FaultKind: TypeAlias = Literal["status", "connect", "reset_after", "stall"]
"""How a request fails. The emulator has all these kinds except ``"connect"``: a running emulator always listens."""

_ERRORS: Final[dict[FaultKind, type[httpx.TransportError]]] = {
    "connect": httpx.ConnectError,
    "reset_after": httpx.ReadError,
    "stall": httpx.ReadTimeout,
}


@attrs.define(kw_only=True)
class Fault:
    """Says how requests fail, and which requests fail; see `RecordingClient.fail_with`.

    Attributes:
        kind: how the requests fail; see `FaultKind`.
        status: the status of the answer for kind ``"status"``.
        times: the number of requests that still fail; None for an unlimited number.
        contains: the fault applies only to requests with this text in the body; None for all requests.
        event_name: the fault applies only to requests with an event of this name; None for all requests.
    """

    kind: FaultKind = "status"
    status: int = 503
    times: int | None = 1
    contains: str | None = None
    event_name: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ConfigurationError(f"kind must be one of {', '.join(get_args(FaultKind))}, not {self.kind!r}")
        if type(self.status) is not int or not 200 <= self.status <= 599:
            raise ConfigurationError(f"status must be an int from 200 to 599, not {self.status!r}")
        if self.times is not None and (type(self.times) is not int or self.times < 1):
            raise ConfigurationError(f"times must be an int of 1 or more or None, not {self.times!r}")
        if self.contains is not None and type(self.contains) is not str:
            raise ConfigurationError(f"contains must be a str or None, not {self.contains!r}")

    @classmethod
    def refusal_of(cls, event: object) -> Fault:
        """Return a fault that refuses all events of a class with 400; `event` is the class or its wire name."""
        name: object = event
        if isinstance(event, type) and issubclass(event, Event):
            name = event.wire_name
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"rejected must be an event's class or wire name ({', '.join(EVENT_TYPES)}), not {event!r}"
            )
        return cls(status=400, times=None, event_name=name)

    def fits(self, request: httpx.Request) -> bool:
        """Return whether the fault applies to a request."""
        if self.contains is not None and self.contains.encode() not in request.content:
            return False
        return self.event_name is None or self.event_name in _event_names(request)

    def answer(self) -> httpx.Response:
        """Return the answer if the kind is ``"status"``; otherwise raise the error that httpx would raise."""
        if self.kind == "status":
            return httpx.Response(self.status, json={})
        raise _ERRORS[self.kind](f"the fault {self.kind!r} of a test")


def _event_names(request: httpx.Request) -> set[str]:
    endpoint = request.url.path.rpartition("/")[2]
    body: Any = json.loads(request.content)
    if isinstance(body, list):
        return {name for envelope in cast("list[dict[str, Any]]", body) for name in envelope}
    return {endpoint}
