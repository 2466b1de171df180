"""Looking for events among those that were recorded, and telling what is there instead."""

from __future__ import annotations

from collections import Counter
from reprlib import Repr
from typing import TYPE_CHECKING, Final, TypeVar, cast

import attrs

from retailrocket_async import EVENT_TYPES, CustomEvent, Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

E = TypeVar("E", bound=Event)

_MOST_TOLD: Final = 10
"""Events that an error lists."""

_brief = Repr()
_brief.maxstring = _brief.maxother = 80
_brief.maxlong = 40


def matching(events: Sequence[Event], event_type: type[E], fields: Mapping[str, object]) -> list[E]:
    """Return the events of a class whose fields have the values wanted.

    Raises:
        TypeError: no event class, or a field that it does not have.
    """
    _check(event_type, fields)
    return [event for event in events if isinstance(event, event_type) and not _differences(event, fields)]


def complaint(expected: str, events: Sequence[Event], event_type: type[Event], fields: Mapping[str, object]) -> str:
    """Return the text of a failed assertion.

    Args:
        expected: how many events were expected, e.g. ``"exactly one"``.
        events: all that were recorded.
        event_type: what was looked for.
        fields: the values wanted.
    """
    wanted = f"{event_type.__name__}({', '.join(f'{name}={_shown(value)}' for name, value in fields.items())})"
    found = matching(events, event_type, fields)
    header = f"expected {expected} {wanted}, but {len(found) or 'none'} of {len(events)} tracked events matched"
    if not events:
        return f"expected {expected} {wanted}, but nothing was tracked"
    kin = [event for event in events if isinstance(event, event_type)]
    listed = found or kin or events
    lines = [f"{header}:"]
    for event in listed[:_MOST_TOLD]:
        differing = _differences(event, fields) if kin else []
        lines.append(f"  {_told(event, fields)}{'  <- ' * bool(differing)}{', '.join(differing)}")
    if len(listed) > _MOST_TOLD:
        lines.append(f"  ... and {len(listed) - _MOST_TOLD} more of them")
    if len(events) > len(listed):
        names = Counter(type(event).__name__ for event in events)
        lines.append(f"tracked in all: {', '.join(f'{count} {name}' for name, count in names.items())}")
    return "\n".join(lines)


def _check(event_type: object, fields: Mapping[str, object]) -> None:
    if not (isinstance(event_type, type) and issubclass(event_type, Event)):
        raise TypeError(f"look for an event class, e.g. View, not {event_type!r}")
    classes = [cls for cls in (*EVENT_TYPES.values(), CustomEvent) if issubclass(cls, event_type)]
    known = {field.name for cls in (event_type, *classes) for field in attrs.fields(cls)}
    # Mistyped, it would make any event differ, and `none` succeed.
    if unknown := sorted(fields.keys() - known):
        raise TypeError(f"{event_type.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")


def _differences(event: Event, fields: Mapping[str, object]) -> list[str]:
    """Return what is not as wanted, e.g. ``["quantity is 1, not 2"]``."""
    differing: list[str] = []
    for name, wanted in fields.items():
        if not hasattr(event, name):
            differing.append(f"no {name}")
            continue
        value = cast("object", getattr(event, name))
        # Events keep a list of ids as a tuple.
        if wanted not in (value, _as_list(value)):
            differing.append(f"{name} is {_shown(value)}, not {_shown(wanted)}")
    return differing


def _as_list(value: object) -> object:
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


def _told(event: Event, fields: Mapping[str, object]) -> str:
    """Return an event as short as it can be told: without what is absent, the visitor last, no moment unless wanted."""
    told = {field.name: getattr(event, field.name) for field in attrs.fields(type(event))}
    told |= {name: told.pop(name) for name in ("session_external_id",) if name in told}
    if "timestamp" not in fields:
        told.pop("timestamp", None)
    values = ", ".join(f"{name}={_shown(value)}" for name, value in told.items() if value is not None)
    return f"{type(event).__name__}({values})"


def _shown(value: object) -> str:
    return _brief.repr(value)
