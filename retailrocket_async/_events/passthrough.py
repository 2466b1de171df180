"""Finds envelopes (events as JSON) that can be sent unchanged, without being decoded into event objects.

Most envelopes from a message broker are complete, valid and spelled as the API spells them. Checking such an
envelope takes a third of the time of decoding and encoding the envelope again. The checks are the validators of the
event classes.
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
from retailrocket_async._events.names import camel
from retailrocket_async._events.validators import frozen_object, moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._events.models import Event

_WHOLE_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", re.ASCII)

_MOMENTS = 4_096
"""Number of timestamps whose check is cached; many events in a row have the same timestamp in seconds."""

_Rule: TypeAlias = "Callable[[Any, attrs.Attribute[Any], Any], None]"


class _Name(NamedTuple):
    """Replaces an event in calls of validators, which read only the name of the event."""

    event_name: str


class _Plan(NamedTuple):
    """The allowed and the required fields of one event, with the validator of each field.

    Attributes:
        name: holds the event's name, for the validators.
        rules: the validator and the attrs field of each allowed field, by the field's JSON name.
        required: the JSON names of the required fields.
    """

    name: _Name
    rules: dict[str, tuple[_Rule, attrs.Attribute[Any]]]
    required: frozenset[str]


class Passthrough:
    """Decides whether an envelope can be sent unchanged."""

    def __init__(self) -> None:
        whole = lru_cache(_MOMENTS)(_are_whole_seconds)
        self._plans = {name: _plan(name, cls, whole) for name, cls in EVENT_TYPES.items()}

    def label_of(self, envelope: Any) -> tuple[str, str] | None:  # noqa: ANN401 - any JSON
        """Return the event's name and session id if the envelope can be sent unchanged, otherwise None.

        Args:
            envelope: the envelope as plain JSON values.
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


def _plan(name: str, cls: type[Event], whole: Callable[[str], bool]) -> _Plan:
    rules: dict[str, tuple[_Rule, attrs.Attribute[Any]]] = {}
    required = {"timestamp"}
    for field in attrs.fields(cls):
        if field.name == "extra":
            # An envelope with undocumented fields is decoded, because whether it may be sent depends on `allow_extra`.
            continue
        wire = camel(field.name)
        if field.default is attrs.NOTHING:
            required.add(wire)
        # A field that may hold any JSON must be checked value by value, so an envelope with this field is decoded.
        if field.converter is not frozen_object:
            rules[wire] = (_rule_of(field, whole), field)
    return _Plan(_Name(name), rules, frozenset(required))


def _rule_of(field: attrs.Attribute[Any], whole: Callable[[str], bool]) -> _Rule:
    rule = field.validator
    if rule is None:
        raise TypeError(f"{field.name} has no rule")
    if rule is moment:

        def check_moment(event: _Name, field: attrs.Attribute[Any], value: object) -> None:
            if type(value) is not str or not whole(value):
                raise EventValidationError(event.event_name, field.name, "must be in whole seconds")

        return check_moment
    convert: Any = cast("Any", field).converter
    if convert is None:
        return rule

    def check(event: _Name, field: attrs.Attribute[Any], value: object) -> None:
        rule(event, field, convert(value))

    return check


def _are_whole_seconds(text: str) -> bool:
    """Whether a text is a timestamp in whole seconds, in the form of the API document."""
    if _WHOLE_SECONDS.fullmatch(text):
        with suppress(ValueError):
            datetime.fromisoformat(text)
            return True
    return False
