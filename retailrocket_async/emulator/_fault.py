"""A fault: one thing that goes wrong on purpose, and with which requests."""

from collections.abc import Callable
from math import isfinite
from reprlib import repr as brief
from typing import Any, Final, Literal, cast

import attrs

__all__ = ["Fault", "FaultKind"]

FaultKind = Literal[
    "status",
    "latency",
    "reset_before",
    "reset_after",
    "close_before",
    "close_after",
    "close_idle",
    "stall",
    "truncate",
    "garbage",
]

# Whether a request that is struck is recorded all the same; where that may be chosen, what it is by default.
_RECORDS: Final[dict[str, bool]] = {
    "close_after": True,
    "close_before": False,
    "close_idle": True,
    "garbage": False,
    "latency": True,
    "reset_after": True,
    "reset_before": False,
    "stall": False,
    "status": False,
    "truncate": True,
}
_CHOICE: Final = frozenset({"garbage", "stall", "status"})


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(cast("float", value))


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_header(value: Any) -> bool:  # noqa: ANN401 - anything a caller may give
    return value is None or (_is_text(value) and value.isascii() and value.isprintable())


def _is_body(value: Any) -> bool:  # noqa: ANN401 - anything a caller may give
    return value is None or (_is_text(value) and value.encode(errors="replace").decode() == value)


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "status": (lambda value: _is_whole(value) and 200 <= value <= 599, "an integer from 200 to 599"),
    "retry_after": (_is_header, "printable ASCII text or None"),
    "location": (_is_header, "printable ASCII text or None"),
    "body": (_is_body, "a text that UTF-8 can hold or None"),
    "seconds": (lambda value: _is_number(value) and value >= 0, "a finite number of 0 or more"),
    "times": (lambda value: value is None or (_is_whole(value) and value >= 1), "an integer of 1 or more or None"),
    "path": (_is_text_or_none, "a text or None"),
    "contains": (_is_text_or_none, "a text or None"),
    "probability": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "record": (lambda value: value is None or type(value) is bool, "True, False or None"),
}


@attrs.frozen(kw_only=True)
class Fault:
    """One thing that goes wrong, checked when it is made.

    =================  =====================================================================================
    kind               what the client sees
    =================  =====================================================================================
    ``status``         the answer *status*, the request not being recorded (with *record*: recorded first)
    ``latency``        the usual answer, the request being judged and recorded *seconds* late
    ``reset_before``   the connection reset (TCP RST), the request not being recorded
    ``reset_after``    the same after the request was recorded: its answer is lost
    ``close_before``   the connection closed in order (TCP FIN) without an answer, nothing recorded
    ``close_after``    the same after the request was recorded
    ``close_idle``     the usual answer; the connection is closed (TCP FIN) as soon as another request begins to
                       come by it, of which nothing is recorded or counted
    ``stall``          nothing, until the client gives up (with *record*: recorded first)
    ``truncate``       the head of an answer of 100 bytes and the first few of them; recorded first
    ``garbage``        bytes that are no HTTP, then a close (with *record*: recorded first)
    =================  =====================================================================================

    "Recorded" means judged as ever: a request that is wrong is then recorded as refused.

    Attributes:
        kind: what goes wrong.
        status: the status of kind ``status``, 200 to 599; default 503.
        retry_after: the Retry-After header of that answer, seconds or an HTTP date, sent as it is; default
            None, no header.
        location: the Location header of that answer, for a redirect; default None, no header.
        body: the text of that answer, sent as ``text/plain``; default None, the usual ``{}``. The statuses 204
            and 304 have none.
        seconds: wait so long before the fault strikes, whatever its kind; default 0.0. Kind ``latency``
            needs it above 0.
        times: requests the fault strikes before it is spent, default 1; None for all there will be.
        path: strike requests to this path only, such as ``/1.0/visitorEvents``; None (default) for any.
        contains: strike requests with this text in the body only; None (default) for any.
        probability: chance that a request which fits is struck, 0 to 1; default 1.0.
        record: whether the request is recorded; only for kinds ``status``, ``stall`` and ``garbage``,
            default None: not recorded.

    Raises:
        ValueError: a value is of the wrong type, out of range, or has no meaning for the kind.
    """

    kind: FaultKind
    status: int = 503
    retry_after: str | None = None
    location: str | None = None
    body: str | None = None
    seconds: float = 0.0
    times: int | None = 1
    path: str | None = None
    contains: str | None = None
    probability: float = 1.0
    record: bool | None = None

    @classmethod
    def from_dict(cls, data: object) -> "Fault":
        """Return the fault that *data*, an object with the attributes as keys, describes.

        Raises:
            ValueError: *data* is no such object.
        """
        shown = brief(data)
        if not isinstance(data, dict) or "kind" not in data:
            raise ValueError(f"a fault must be an object with a kind, got {shown}")
        facts = cast("dict[str, Any]", data)
        if unknown := sorted(facts.keys() - attrs.fields_dict(cls).keys()):
            raise ValueError(f"a fault has no {', '.join(unknown)}")
        return cls(**facts)

    @property
    def records(self) -> bool:
        """Whether a request struck by the fault is judged and recorded."""
        return _RECORDS[self.kind] if self.record is None else self.record

    def as_dict(self) -> dict[str, Any]:
        """Return the fault as JSON-ready data."""
        return attrs.asdict(self)

    def fits(self, path: str, body: bytes) -> bool:
        """Whether the fault is meant for a request with *path* and *body*."""
        if self.path is not None and self.path != path:
            return False
        return self.contains is None or self.contains.encode() in body

    def __attrs_post_init__(self) -> None:
        if not (_is_text(self.kind) and self.kind in _RECORDS):
            raise ValueError(f"kind must be one of {', '.join(_RECORDS)}, got {brief(self.kind)}")
        for name, (holds, told) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"{name} must be {told}, got {brief(value)}")
        if self.record is not None and self.kind not in _CHOICE:
            raise ValueError(f"record must be absent with kind {self.kind}")
        if self.kind == "latency" and self.seconds == 0:
            raise ValueError("seconds must be above 0 with kind latency")
