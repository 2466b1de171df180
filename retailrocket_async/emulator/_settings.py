"""The settings of an emulator: one frozen class whose values are checked at construction."""

from collections.abc import Callable
from math import isfinite
from reprlib import repr as brief
from typing import Any, Final

import attrs

__all__ = ["CHANGEABLE", "Settings"]

CHANGEABLE: Final = frozenset(
    {"api_key", "arrival_jitter", "batch_latency", "forbidden", "latency", "limit", "max_body_bytes", "strict_order"},
)
"""The names of the settings that may change while the emulator runs."""


def _text(_: "Settings", attribute: "attrs.Attribute[str]", value: object) -> None:
    if type(value) is not str or not value:
        raise ValueError(f"{attribute.name} must be a string that is not empty, got {brief(value)}")


def _flag(_: "Settings", attribute: "attrs.Attribute[bool]", value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name} must be True or False, got {brief(value)}")


def _whole(least: int | None, *, optional: bool = False) -> Callable[["Settings", "attrs.Attribute[Any]", Any], None]:
    """Return a validator for an integer of at least *least*. The validator refuses bools, although a bool is an int."""

    def check(_: "Settings", attribute: "attrs.Attribute[Any]", value: object) -> None:
        if optional and value is None:
            return
        if type(value) is not int or (least is not None and value < least):
            wanted = "an integer" if least is None else f"an integer of {least} or more"
            raise ValueError(f"{attribute.name} must be {wanted}{' or None' * optional}, got {brief(value)}")

    return check


def _seconds(_: "Settings", attribute: "attrs.Attribute[float]", value: object) -> None:
    if type(value) not in (int, float) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise ValueError(f"{attribute.name} must be a finite number of seconds, 0 or more, got {brief(value)}")


def _span(_: "Settings", attribute: "attrs.Attribute[float]", value: float) -> None:
    _seconds(_, attribute, value)
    if value == 0:
        raise ValueError(f"{attribute.name} must be above 0 seconds")


def _field(default: Any, check: Callable[..., None], text: str, **more: object) -> Any:  # noqa: ANN401 - as attrs.field
    return attrs.field(default=default, validator=check, metadata={"help": text, **more})


@attrs.frozen(kw_only=True)
class Settings:
    """Says how an emulator behaves. Every field has a default, and is checked at construction.

    Everybody knows the default key and shop id, so use the defaults in development only.

    Attributes:
        api_key: the only `apiKey` that is accepted; default ``"dev-api-key"``.
        partner_id: the only `partnerId` that is accepted; default ``"dev-partner"``.
        limit: the most requests that are admitted in any window of *per* seconds, default 50; None for no limit.
        per: the length of the window in seconds, default 1.0.
        latency: seconds between recording and answering a request that is not a batch, default 0.0. The wait ends early
            if the client disconnects; the request then gets no answer.
        batch_latency: the same for a batch, default 0.0. The real API takes 1.5 seconds and more, because it confirms
            that events and order are saved. The default is 0.0 because a test suite waits for hundreds of batches;
            the command line's default is 0.3, so that a developer sees that an answer takes time.
        arrival_jitter: each request is delayed by a random 0 to *arrival_jitter* seconds before the request is counted,
            as a network would delay the request; default 0.0.
        seed: the seed of the random numbers for these delays and for the faults; None (default) for a random seed.
        max_body_bytes: the most bytes of a body, default 8,388,608 (8 MiB); a longer body is refused with 413.
        allow_unknown_events: accept events of any name, with any fields; default False.
        allow_unknown_fields: accept undocumented fields of documented events; default False.
        forbidden: answer 403 to every request with the right key; default False.
        strict_order: answer 409 to a request that violates the order of a visitor's events, and do not record the
            request's events; default False, such a request is only counted and listed. See `OrderViolation`.
        keep: how many accepted events are stored in memory, and of how many visitors the latest times are; default
            200,000. The oldest are dropped first.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """

    api_key: str = attrs.field(
        default="dev-api-key", validator=_text, metadata={"help": "the apiKey that is accepted"}, repr=False
    )
    partner_id: str = _field("dev-partner", _text, "the partnerId that is accepted")
    limit: int | None = _field(50, _whole(1, optional=True), "requests admitted per window, or 'none'")
    per: float = _field(1.0, _span, "length of the window in seconds")
    latency: float = _field(0.0, _seconds, "seconds between recording a single event and answering the request")
    batch_latency: float = _field(
        0.0,
        _seconds,
        "seconds between recording a batch and answering it; the real API takes 1.5 seconds and more",
        command=0.3,
    )
    arrival_jitter: float = _field(0.0, _seconds, "each request is delayed by a random 0 to this many seconds")
    seed: int | None = _field(None, _whole(None, optional=True), "seed of the randomness, or 'none'")
    max_body_bytes: int = _field(8 * 1024 * 1024, _whole(1), "a longer body is refused with 413")
    allow_unknown_events: bool = _field(default=False, check=_flag, text="accept events of any name")
    allow_unknown_fields: bool = _field(default=False, check=_flag, text="accept undocumented fields of events")
    forbidden: bool = _field(default=False, check=_flag, text="answer 403 to every request")
    strict_order: bool = _field(default=False, check=_flag, text="answer 409 to a request that violates the order")
    keep: int = _field(200_000, _whole(1), "accepted events, and visitors, kept in memory")

    def changed(self, /, **changes: object) -> "Settings":
        """Return a copy with *changes*; the names of all changed settings must be in `CHANGEABLE`.

        Raises:
            ValueError: a setting is unknown, may not change at run time, or has a wrong value.
        """
        if fixed := sorted(changes.keys() - CHANGEABLE):
            raise ValueError(f"cannot change {', '.join(fixed)}; only {', '.join(sorted(CHANGEABLE))}")
        values: dict[str, Any] = changes
        return attrs.evolve(self, **values)

    def shown(self) -> dict[str, Any]:
        """Return all settings except the key, as JSON-ready data."""
        return attrs.asdict(self, filter=lambda attribute, _: attribute.name != "api_key")
