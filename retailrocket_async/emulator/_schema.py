"""Checks the body of a request strictly, by tables with the rules for the fields of each event.

A check returns the mistakes in a body as a list of reasons, at most 1,000; the list is empty if the body is valid.
Each reason begins with the path of the wrong value::

    [3].view.productId: must be an integer, not a string

The type of a value must be exact: neither ``true`` nor ``2.0`` is accepted as an integer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypeAlias, cast

import attrs

__all__ = ["EVENTS", "check_batch", "check_event"]

# Reasons without the path of the value at the beginning: ": must be ...", or "[1]: must be ..." for an item of a list.
# The path is added only if there is a reason, so that the check of a valid event creates no strings.
_Tails: TypeAlias = Iterable[str]
_Rule: TypeAlias = Callable[[object], _Tails]

_JSON_TYPES: Final[dict[type, str]] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number with a fraction or an exponent",
    int: "an integer",
    list: "an array",
    str: "a string",
    type(None): "null",
}
_INT64: Final = 2**63
_SHOWN: Final = 50
_REASONS: Final = 1_000

_LETTERS_AND_DIGITS: Final = re.compile("[A-Za-z0-9]+")
_TIMESTAMP: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
)
_E164: Final = re.compile(r"\+[1-9][0-9]{1,14}")
_EMAIL: Final = re.compile(r"\S+@[^@\s]+")


def _not_a(wanted: str, value: object) -> tuple[str]:
    return (f": must be {wanted}, not {_JSON_TYPES[type(value)]}",)


def _integer(value: object) -> _Tails:
    if type(value) is int:
        return () if -_INT64 <= value < _INT64 else (": must fit a signed 64-bit integer",)
    # The JSON parser returns an integer of more than 64 bits as a float.
    if type(value) is float and abs(value) >= _INT64:
        return (": must fit a signed 64-bit integer",)
    return _not_a("an integer", value)


def _integers(value: object) -> _Tails:
    if type(value) is not list:
        return _not_a("an array of integers", value)
    if not value:
        return (": must not be empty",)
    items = enumerate(cast("list[object]", value))
    return (f"[{place}]{tail}" for place, item in items for tail in _integer(item))


def _number(bound: str, holds: Callable[[float], bool]) -> _Rule:
    def rule(value: object) -> _Tails:
        if type(value) is not int and type(value) is not float:
            return _not_a("a number", value)
        return () if holds(cast("float", value)) else (f": must be {bound}",)

    return rule


def _string(most: int | None = None, pattern: re.Pattern[str] | None = None, form: str = "") -> _Rule:
    def rule(value: object) -> _Tails:
        if type(value) is not str:
            return _not_a("a string", value)
        if not value:
            return (": must not be empty",)
        if most is not None and len(value) > most:
            return (f": must be at most {most} characters, not {len(value)}",)
        if pattern is not None and pattern.fullmatch(value) is None:
            return (f": must be {form}",)
        return ()

    return rule


def _timestamp(value: object) -> _Tails:
    if type(value) is not str:
        return _not_a("a string", value)
    # The pattern checks the form, since fromisoformat also accepts week dates. Then fromisoformat checks the calendar.
    if _TIMESTAMP.fullmatch(value) is None:
        return (": must be ISO 8601 with an offset, such as 2018-09-15T15:53:00+00:00",)
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        return (f": must be a real moment: {error}",)
    return ()


def _object(value: object) -> _Tails:
    return () if type(value) is dict else _not_a("an object", value)


_external_id = _string(50, _LETTERS_AND_DIGITS, "letters and digits only")
_short_text = _string(50)

_FIELDS: Final[dict[str, _Rule]] = {
    "categoryId": _integer,
    "categoryPath": _string(),
    "contactExternalId": _external_id,
    "customData": _object,
    "email": _string(None, _EMAIL, "an e-mail address"),
    "groupId": _integer,
    "impressionContentId": _short_text,
    "mailTrackingId": _string(),
    "phone": _string(None, _E164, "E.164, such as +79991234567"),
    "price": _number("0 or more", lambda value: value >= 0),
    "productId": _integer,
    "productIds": _integers,
    "quantity": _number("above 0", lambda value: value > 0),
    "recomBlockId": _short_text,
    "searchPhrase": _string(),
    "sessionExternalId": _external_id,
    "stockId": _short_text,
    "timestamp": _timestamp,
    "transaction": _short_text,
}


@attrs.frozen
class _Shape:
    """The fields of one event: the names of the required fields, and the rule of each allowed field."""

    required: tuple[str, ...]
    rules: dict[str, _Rule]


@attrs.frozen
class _Allowed:
    """What is accepted although the API does not document it: events of unknown names, and unknown fields."""

    unknown_events: bool
    unknown_fields: bool


def _shape(required: str, optional: str = "") -> _Shape:
    wanted = ("sessionExternalId", *required.split())
    return _Shape(wanted, {name: _FIELDS[name] for name in (*wanted, *optional.split(), "timestamp")})


EVENTS: Final[dict[str, _Shape]] = {
    "addToBasket": _shape("productId", "stockId"),
    "categoryView": _shape("categoryId"),
    "categoryViewByCategoryPath": _shape("categoryPath"),
    "emailClick": _shape("mailTrackingId", "customData"),
    "groupView": _shape("groupId productIds", "stockId"),
    "impressionContentClicked": _shape("impressionContentId"),
    "impressionContentViewed": _shape("impressionContentId"),
    "order": _shape("productId quantity price transaction", "stockId"),
    "recomAddToBasket": _shape("productId recomBlockId", "stockId"),
    "recomBlockViewed": _shape("recomBlockId"),
    "recomTap": _shape("productId recomBlockId", "stockId"),
    "search": _shape("searchPhrase", "stockId"),
    "setContact": _shape("contactExternalId", "email phone stockId customData"),
    "view": _shape("productId", "stockId"),
    "welcomeSequence": _shape("email"),
}
"""The fifteen events by name."""

_ALONE: Final = frozenset({"categoryViewByCategoryPath"})
"""The events that have only their own endpoint: no envelope is documented for them, so a batch may not hold them."""


def _tails(name: str, event: object, allow: _Allowed) -> Iterator[str]:
    if type(event) is not dict:
        yield from _not_a("an object", event)
        return
    shape = EVENTS.get(name)
    if shape is None:
        if not allow.unknown_events:
            yield ": is no event of the API"
        return
    fields = cast("dict[str, object]", event)
    for field, value in fields.items():
        rule = shape.rules.get(field)
        if rule is None:
            if not allow.unknown_fields:
                yield f".{field[:_SHOWN]}: is no field of this event"
            continue
        for tail in rule(value):
            yield f".{field}{tail}"
    for field in shape.required:
        if field not in fields:
            yield f".{field}: is missing"


def check_event(name: str, event: object, *, allow_unknown: bool = False, allow_extra: bool = False) -> list[str]:
    """Return the mistakes in *event*, the body of a ``POST /1.0/<name>``, as a list of at most 1,000 reasons.

    The path in each reason starts at the event, as in ``productId``.

    Args:
        name: the event's name, such as ``view``.
        event: the decoded body.
        allow_unknown: accept an event with an undocumented name without checking the fields; default False.
        allow_extra: accept undocumented fields of a documented event; default False.
    """
    tails = _tails(name, event, _Allowed(allow_unknown, allow_extra))
    return _first(tail[1:] if tail.startswith(".") else f"body{tail}" for tail in tails)


def _envelope(place: int, envelope: object, allow: _Allowed) -> Iterator[str]:
    if type(envelope) is not dict:
        yield f"[{place}]{_not_a('an object', envelope)[0]}"
        return
    events = cast("dict[str, object]", envelope)
    if len(events) != 1:
        yield f"[{place}]: must have exactly one key, the event's name, not {len(events)}"
        return
    for name, event in events.items():
        if name in _ALONE:
            yield f"[{place}].{name}: has only its own endpoint, and no batch may hold it"
        for tail in _tails(name, event, allow):
            yield f"[{place}].{name[:_SHOWN]}{tail}"


def check_batch(
    batch: Any,  # noqa: ANN401 - any JSON value
    *,
    allow_unknown: bool = False,
    allow_extra: bool = False,
) -> list[str]:
    """Return the mistakes in *batch*, the body of a ``POST /1.0/visitorEvents``, as at most 1,000 reasons.

    Args:
        batch: the decoded body. A valid body is an array of envelopes that is not empty.
        allow_unknown: accept events with undocumented names without checking the fields; default False.
        allow_extra: accept undocumented fields of documented events; default False.
    """
    allow = _Allowed(allow_unknown, allow_extra)
    if type(batch) is not list:
        return [f"body{_not_a('an array', batch)[0]}"]
    if not batch:
        return ["body: must not be empty"]
    envelopes = enumerate(cast("list[object]", batch))
    return _first(reason for place, item in envelopes for reason in _envelope(place, item, allow))


def _first(reasons: Iterator[str]) -> list[str]:
    """Return the first 1,000 reasons: all reasons for a body of millions of wrong values would take a gigabyte."""
    return [*islice(reasons, _REASONS), *(["... and more"] if next(reasons, None) else [])]
