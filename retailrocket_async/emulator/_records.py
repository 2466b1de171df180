"""The records of an emulator: of an accepted event, of a request, and of a violation of a visitor's order."""

from typing import Any, Literal, TypeAlias

import attrs

__all__ = ["EventRecord", "OrderViolation", "RequestRecord", "ViolationKind"]

ViolationKind: TypeAlias = Literal["overlap", "backward"]


@attrs.frozen
class EventRecord:
    """One accepted event.

    Attributes:
        seq: the event's number in order of acceptance, from 1.
        request: the number of the request that contained the event.
        name: the event's name.
        fields: the event object as it was received.
    """

    seq: int
    request: int
    name: str
    fields: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return {"seq": self.seq, "request": self.request, "name": self.name, "fields": self.fields}


@attrs.define(eq=False)
class RequestRecord:
    """One request; the fields are filled in while the request is handled.

    Attributes:
        number: the request's number in order of arrival, from 1.
        time: when the request arrived, in seconds since 1970.
        method: the HTTP method.
        path: the path, without the query.
        query: the query's parameters without the key.
        content_type: the Content-Type header; None if the request had no such header.
        status: the status of the answer; None if the request was not answered, or is not answered yet.
        events: how many of the request's events were accepted.
        size: the length of the body in bytes.
        body: the body's first 65,536 bytes.
        reasons: the reasons of a refusal, at most 1,000; if there were more, the last entry is ``"... and more"``.
        fault: the kind of the fault that applied to the request; None if no fault applied.
    """

    number: int
    time: float
    method: str
    path: str
    query: dict[str, str]
    content_type: str | None
    status: int | None = None
    events: int = 0
    size: int = 0
    body: bytes = b""
    reasons: list[str] = attrs.Factory(list[str])
    fault: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data, with the body as text, and the body's size as ``bytes``."""
        return {
            "number": self.number,
            "time": self.time,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "content_type": self.content_type,
            "status": self.status,
            "events": self.events,
            "bytes": self.size,
            "body": self.body.decode(errors="replace"),
            "reasons": self.reasons,
            "fault": self.fault,
        }


@attrs.frozen
class OrderViolation:
    """A request that violates the order of one visitor's events.

    Kind ``overlap``: another request with events of the visitor was under way. The contract asks that the second
    request is sent only after the first was answered. A request whose connection broke is no longer under way.

    Kind ``backward``: the request has an event that is older than an event of the visitor in an earlier request. Either
    the client sent the events in another order than they were tracked, or the shop gave them such timestamps.

    Attributes:
        number: the violation's number, from 1.
        kind: ``"overlap"`` or ``"backward"``.
        visitor: the `sessionExternalId`.
        request: the number of the request that violates the order.
        time: when this request arrived, in seconds since 1970.
        other: the number of the request under way, or of the request with the later timestamp.
        other_time: when the other request arrived, in seconds since 1970.
        timestamp: for ``backward``, the visitor's earliest timestamp in the request, in seconds since 1970; else None.
        other_timestamp: for ``backward``, the visitor's latest timestamp in the other request; else None.
    """

    number: int
    kind: ViolationKind
    visitor: str
    request: int
    time: float
    other: int
    other_time: float
    timestamp: float | None = None
    other_timestamp: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return attrs.asdict(self)
