"""What an emulator is told at birth: one frozen, validated record."""

from collections.abc import Callable
from math import isfinite
from reprlib import repr as brief
from typing import Any, Final

import attrs

__all__ = ["CHANGEABLE", "Settings"]

CHANGEABLE: Final = frozenset(
    {"api_key", "arrival_jitter", "forbidden", "latency", "limit", "max_body_bytes"},
)
"""The settings that may change while the emulator runs."""


def _text(_: "Settings", attribute: "attrs.Attribute[str]", value: object) -> None:
    if type(value) is not str or not value:
        raise ValueError(f"{attribute.name} must be a string that is not empty, got {brief(value)}")


def _flag(_: "Settings", attribute: "attrs.Attribute[bool]", value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name} must be True or False, got {brief(value)}")


def _whole(least: int | None, *, optional: bool = False) -> Callable[["Settings", "attrs.Attribute[Any]", Any], None]:
    """Make a check for an integer of at least *least*; a bool is none, though Python says it is."""

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


def _field(default: Any, check: Callable[..., None], told: str) -> Any:  # noqa: ANN401 - as attrs.field itself
    return attrs.field(default=default, validator=check, metadata={"help": told})


@attrs.frozen(kw_only=True)
class Settings:
    """How an emulator behaves; every field has a default and is checked when the record is made.

    The default key and shop are development values, known to everyone: they guard nothing.

    Attributes:
        api_key: the one `apiKey` that is let in; default ``"dev-api-key"``.
        partner_id: the one `partnerId` that is let in; default ``"dev-partner"``.
        limit: requests admitted in any window of *per* seconds, default 50; None lifts the limit.
        per: the length of the window in seconds, default 1.0.
        latency: seconds between recording a request and answering it, default 0.0.
        arrival_jitter: each arrival is put off by a random 0 to *arrival_jitter* seconds before it is
            counted, as a network does; default 0.0.
        seed: seed of that randomness and of the faults' probabilities; None (default) takes a new one.
        max_body_bytes: a longer body is refused with 413; default 8,388,608 bytes (8 MiB).
        allow_unknown_events: accept events of any name, with any fields; default False.
        forbidden: answer 403 to every request with the right key; default False.
        keep: accepted events held in memory, the oldest being dropped first; default 200,000.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """

    api_key: str = attrs.field(
        default="dev-api-key", validator=_text, metadata={"help": "the apiKey that is let in"}, repr=False
    )
    partner_id: str = _field("dev-partner", _text, "the partnerId that is let in")
    limit: int | None = _field(50, _whole(1, optional=True), "requests admitted per window, or 'none'")
    per: float = _field(1.0, _span, "length of the window in seconds")
    latency: float = _field(0.0, _seconds, "seconds between recording a request and answering it")
    arrival_jitter: float = _field(0.0, _seconds, "each arrival is put off by 0 to this many seconds")
    seed: int | None = _field(None, _whole(None, optional=True), "seed of the randomness, or 'none'")
    max_body_bytes: int = _field(8 * 1024 * 1024, _whole(1), "a longer body is refused with 413")
    allow_unknown_events: bool = _field(default=False, check=_flag, told="accept events of any name")
    forbidden: bool = _field(default=False, check=_flag, told="answer 403 to every request")
    keep: int = _field(200_000, _whole(1), "accepted events held in memory")

    def changed(self, /, **changes: object) -> "Settings":
        """Return a copy with *changes*, each one of `CHANGEABLE`.

        Raises:
            ValueError: a setting is unknown, may not change at run time, or has a wrong value.
        """
        if fixed := sorted(changes.keys() - CHANGEABLE):
            raise ValueError(f"cannot change {', '.join(fixed)}; only {', '.join(sorted(CHANGEABLE))}")
        values: dict[str, Any] = changes
        return attrs.evolve(self, **values)

    def shown(self) -> dict[str, Any]:
        """Return every setting but the key, for a report."""
        return attrs.asdict(self, filter=lambda attribute, _: attribute.name != "api_key")
