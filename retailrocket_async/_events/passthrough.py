"""Envelopes that are good as they are, told from the others without making events of them.

What comes from a broker is mostly what a program like this one wrote: whole, by the rules, and in the API's spelling.
To see that costs a third of decoding it and encoding it again. The rules are the events' own, read off their classes.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import attrs

from retailrocket_async._errors import EventValidationError
from retailrocket_async._events.models import EVENT_TYPES
from retailrocket_async._events.validators import frozen_object, moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._events.models import Event

_WHOLE_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", re.ASCII)

_MOMENTS = 4_096
"""Seconds whose spelling is remembered: events of one second come together."""

_Rule: TypeAlias = "Callable[[Any, attrs.Attribute[Any], Any], None]"


class _Name(NamedTuple):
    """What a rule needs to know of an event."""

    event_name: str


class _Plan(NamedTuple):
    """What an event's object must hold.

    Attributes:
        name: for the rules.
        rules: for each field that it may have, by its name on the wire.
        required: names on the wire of those that it must have.
    """

    name: _Name
    rules: dict[str, tuple[_Rule, attrs.Attribute[Any]]]
    required: frozenset[str]


class Passthrough:
    """Tells which envelopes may be sent as they are."""

    def __init__(self) -> None:
        whole = lru_cache(_MOMENTS)(_are_whole_seconds)
        self._plans = {name: _plan(name, cls, whole) for name, cls in EVENT_TYPES.items()}

    def label_of(self, envelope: Any) -> tuple[str, str] | None:  # noqa: ANN401 - whatever was in the JSON
        """Return the name and the visitor of what is sure to be an event in the API's spelling; None for the rest.

        Args:
            envelope: plain JSON values.
        """
        members = cast("dict[str, Any]", envelope)
        if type(members) is not dict or len(members) != 1:
            return None
        [(name, value)] = members.items()
        fields = cast("dict[str, Any]", value)
        plan = self._plans.get(name)
        if plan is None or type(fields) is not dict or not plan.required <= fields.keys():
            return None
        event, rules, _ = plan
        try:
            for key, value in fields.items():
                rule, field = rules[key]
                rule(event, field, value)
        except (KeyError, EventValidationError):
            return None
        return name, fields["sessionExternalId"]


def camel(snake: str) -> str:
    """Return the name on the wire of a field."""
    first, *rest = snake.split("_")
    return first + "".join(map(str.capitalize, rest))


def _plan(name: str, cls: type[Event], whole: Callable[[str], bool]) -> _Plan:
    rules: dict[str, tuple[_Rule, attrs.Attribute[Any]]] = {}
    required = {"timestamp"}
    for field in attrs.fields(cls):
        wire = camel(field.name)
        if field.default is attrs.NOTHING:
            required.add(wire)
        # What may hold any JSON has to be looked through.
        if field.converter is not frozen_object:
            rules[wire] = (_rule_of(field, whole), field)
    return _Plan(_Name(name), rules, frozenset(required))


def _rule_of(field: attrs.Attribute[Any], whole: Callable[[str], bool]) -> _Rule:
    rule = field.validator
    if rule is None:
        raise TypeError(f"{field.name} has no rule")
    if rule is moment:

        def judge_moment(event: _Name, field: attrs.Attribute[Any], value: object) -> None:
            if type(value) is not str or not whole(value):
                raise EventValidationError(event.event_name, field.name, "must be in whole seconds")

        return judge_moment
    convert: Any = cast("Any", field).converter
    if convert is None:
        return rule

    def judge(event: _Name, field: attrs.Attribute[Any], value: object) -> None:
        rule(event, field, convert(value))

    return judge


def _are_whole_seconds(text: str) -> bool:
    """Whether a text is a moment as the API document spells it."""
    if _WHOLE_SECONDS.fullmatch(text):
        with suppress(ValueError):
            datetime.fromisoformat(text)
            return True
    return False
