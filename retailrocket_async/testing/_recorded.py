"""Searches recorded events, and writes the error message if an assertion about recorded events fails."""

from __future__ import annotations

from collections import Counter
from reprlib import Repr
from typing import TYPE_CHECKING, Final, TypeVar, cast

import attrs

from retailrocket_async import EVENT_TYPES, CustomEvent, Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

E = TypeVar("E", bound=Event)

_MOST_LISTED: Final = 10
"""The most events that an error message lists."""

_brief = Repr()
_brief.maxstring = _brief.maxother = 80
_brief.maxlong = 40


def matching(events: Sequence[Event], event_type: type[E], fields: Mapping[str, object]) -> list[E]:
    """Return the events of a class whose fields have the wanted values.

    Raises:
        TypeError: `event_type` is not an event class, or lacks a field.
    """
    _check(event_type, fields)
    return [event for event in events if isinstance(event, event_type) and not _differences(event, fields)]


def complaint(expected: str, events: Sequence[Event], event_type: type[Event], fields: Mapping[str, object]) -> str:
    """Return the message of a failed assertion.

    Args:
        expected: how many events were expected, e.g. ``"exactly one"``.
        events: all recorded events.
        event_type: the class of the expected events.
        fields: the values that the fields of the expected events have.
    """
    wanted = f"{event_type.__name__}({', '.join(f'{name}={_shown(value)}' for name, value in fields.items())})"
    found = matching(events, event_type, fields)
    header = f"expected {expected} {wanted}, but {len(found) or 'none'} of {len(events)} tracked events matched"
    if not events:
        return f"expected {expected} {wanted}, but nothing was tracked"
    kin = [event for event in events if isinstance(event, event_type)]
    listed = found or kin or events
    lines = [f"{header}:"]
    for event in listed[:_MOST_LISTED]:
        differing = _differences(event, fields) if kin else []
        lines.append(f"  {_described(event, fields)}{'  <- ' * bool(differing)}{', '.join(differing)}")
    if len(listed) > _MOST_LISTED:
        lines.append(f"  ... and {len(listed) - _MOST_LISTED} more of them")
    if len(events) > len(listed):
        names = Counter(type(event).__name__ for event in events)
        lines.append(f"tracked in all: {', '.join(f'{count} {name}' for name, count in names.items())}")
    return "\n".join(lines)


def _check(event_type: object, fields: Mapping[str, object]) -> None:
    if not (isinstance(event_type, type) and issubclass(event_type, Event)):
        raise TypeError(f"look for an event class, e.g. View, not {event_type!r}")
    classes = [cls for cls in (*EVENT_TYPES.values(), CustomEvent) if issubclass(cls, event_type)]
    known = {field.name for cls in (event_type, *classes) for field in attrs.fields(cls)}
    # No event has a field with a mistyped name, so without this check `RecordingClient.none` would always pass.
    if unknown := sorted(fields.keys() - known):
        raise TypeError(f"{event_type.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")


def _differences(event: Event, fields: Mapping[str, object]) -> list[str]:
    """Return how an event's fields differ from the wanted values, e.g. ``["quantity is 1, not 2"]``."""
    differing: list[str] = []
    for name, wanted in fields.items():
        if not hasattr(event, name):
            differing.append(f"no {name}")
            continue
        value = cast("object", getattr(event, name))
        # An event stores ids as a tuple. A test may give the wanted ids as a list, so both forms are compared.
        if wanted not in (value, _as_list(value)):
            differing.append(f"{name} is {_shown(value)}, not {_shown(wanted)}")
    return differing


def _as_list(value: object) -> object:
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


def _described(event: Event, fields: Mapping[str, object]) -> str:
    """Return a short text for an event.

    The text leaves out fields without a value, and shows the visitor last. The timestamp is shown only if `fields` has
    a wanted timestamp.
    """
    values_by_name = {field.name: getattr(event, field.name) for field in attrs.fields(type(event))}
    values_by_name |= {name: values_by_name.pop(name) for name in ("session_external_id",) if name in values_by_name}
    if "timestamp" not in fields:
        values_by_name.pop("timestamp", None)
    values = ", ".join(f"{name}={_shown(value)}" for name, value in values_by_name.items() if value is not None)
    return f"{type(event).__name__}({values})"


def _shown(value: object) -> str:
    return _brief.repr(value)
