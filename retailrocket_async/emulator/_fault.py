"""A fault: a deliberate failure, and the requests that the failure applies to."""

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

# For each kind: whether a request with such a fault is recorded in spite of the fault. For the kinds in _CHOICE, a
# fault's *record* replaces this value.
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


def _is_header(value: Any) -> bool:  # noqa: ANN401 - a caller may pass any value
    return value is None or (_is_text(value) and value.isascii() and value.isprintable())


def _is_body(value: Any) -> bool:  # noqa: ANN401 - a caller may pass any value
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
    """A deliberate failure, and the requests that the failure applies to. All values are checked at construction.

    =================  =====================================================================================
    kind               effect for the client
    =================  =====================================================================================
    ``status``         an answer with *status*; the request is not recorded (with *record*: recorded first)
    ``latency``        the usual answer; the request is judged, recorded and answered *seconds* later
    ``reset_before``   the connection is reset (TCP RST), and the request is not recorded
    ``reset_after``    the request is recorded, then the connection is reset without an answer
    ``close_before``   the connection is closed (TCP FIN) without an answer, and the request is not recorded
    ``close_after``    the request is recorded, then the connection is closed without an answer
    ``close_idle``     the usual answer; the connection is closed (TCP FIN) when the next request begins to arrive,
                       and that request is neither recorded nor counted
    ``stall``          no answer until the client gives up (with *record*: recorded first)
    ``truncate``       the request is recorded; the answer's head announces 100 bytes, but only a few bytes follow
    ``garbage``        bytes that are not HTTP; then the connection is closed (with *record*: recorded first)
    =================  =====================================================================================

    "Recorded" means that the request is judged as usual, so an invalid request is recorded as refused.

    Attributes:
        kind: the failure; see the table.
        status: the status of kind ``status``, 200 to 599; default 503.
        retry_after: the Retry-After header for kind ``status``, seconds or an HTTP date, sent unchanged; default
            None, no header.
        location: the Location header for kind ``status``, for a redirect; default None, no header.
        body: the text of the answer of kind ``status``, sent as ``text/plain``; default None, the usual ``{}``.
            Answers with status 204 and 304 have no body.
        seconds: delay before the fault takes effect, for every kind; default 0.0. Kind ``latency`` needs more than 0.
        times: the number of requests that the fault applies to, default 1; None for an unlimited number.
        path: the fault applies only to requests with this path, such as ``/1.0/visitorEvents``; None (default) for all
            requests.
        contains: the fault applies only to requests with this text in the body; None (default) for all requests.
        probability: the chance that a matching request fails, 0 to 1; default 1.0.
        record: whether the request is recorded, for kinds ``status``, ``stall`` and ``garbage`` only;
            default None, not recorded.

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
        """Return the fault that *data* describes: a dict with the names of the attributes as keys.

        Raises:
            ValueError: *data* is not a dict, lacks ``kind``, or has an unknown key or a wrong value.
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
        """Whether a request with this fault is judged and recorded."""
        return _RECORDS[self.kind] if self.record is None else self.record

    def as_dict(self) -> dict[str, Any]:
        """Return the fault as JSON-ready data."""
        return attrs.asdict(self)

    def fits(self, path: str, body: bytes) -> bool:
        """Return whether the fault can apply to a request with *path* and *body*; *probability* is not considered."""
        if self.path is not None and self.path != path:
            return False
        return self.contains is None or self.contains.encode() in body

    def __attrs_post_init__(self) -> None:
        if not (_is_text(self.kind) and self.kind in _RECORDS):
            raise ValueError(f"kind must be one of {', '.join(_RECORDS)}, got {brief(self.kind)}")
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"{name} must be {rule}, got {brief(value)}")
        if self.record is not None and self.kind not in _CHOICE:
            raise ValueError(f"record must be absent with kind {self.kind}")
        if self.kind == "latency" and self.seconds == 0:
            raise ValueError("seconds must be above 0 with kind latency")
