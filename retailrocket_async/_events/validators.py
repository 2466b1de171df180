"""Checks the fields of events by the rules of the API; each rule is one attrs validator.

The validators run for every event, in the caller's code, so each validator checks the valid case first, in one or
two comparisons. Types must match exactly: a `bool` is not accepted as an int, and an object of a subclass of `str` is
not accepted as a str, because such an object may print another text than its value.
Source: API document, "Fields".
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, ForwardRef, NoReturn, Protocol, TypeAlias, cast

import attrs

from retailrocket_async._errors import EventValidationError, brief, type_name
from retailrocket_async._events.hints import int_hint, phone_hint, uuid_hint
from retailrocket_async._events.names import camel
from retailrocket_async._interrupt import is_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

Number: TypeAlias = int | float | Decimal
"""The types of `price` and `quantity`."""

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
else:
    # The module is given so that `typing.get_type_hints` of an event can resolve the name.
    _JSON = ForwardRef("Json", module=__name__)
    Json = bool | int | float | str | list[_JSON] | dict[str, _JSON] | None
"""A JSON value, as in `custom_data`, `extra` and `CustomEvent.fields`."""

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
MAX_DEPTH = 32
"""Levels of nesting that `custom_data`, `extra` and `CustomEvent.fields` may have."""

MAX_VALUES = 5_000
"""Number of values in `custom_data`, `extra` or `CustomEvent.fields`, including nested values. Checking more values
would block the event loop."""

MAX_IDS = 100_000
"""Number of ids in `product_ids`. A `range` may have billions of ids; checking so many would block the event loop."""

PERSONAL = frozenset(
    {"session_external_id", "contact_external_id", "search_phrase", "email", "phone", "custom_data", "extra"}
)
"""Fields whose values are never shown in a message, because they are or may contain personal data.

There is one exception: the message for a refused `phone` shows the number in the form that is probably right.
"""

_MINUTE = timedelta(minutes=1)
_E164 = re.compile(r"\+[1-9][0-9]{1,14}", re.ASCII)


class Named(Protocol):
    """The part of an event that a validator needs."""

    @property
    def event_name(self) -> str: ...


def fail(event: Named, field: str, rule: str, value: object, hint: str = "") -> NoReturn:
    """Raise the error for a value that breaks `rule`; the error does not contain the values of personal fields.

    Args:
        event: the event.
        field: the Python name of the field.
        rule: the rule.
        value: the value.
        hint: how to correct the value; see `hints`.
    """
    if field not in PERSONAL:
        raise EventValidationError(event.event_name, field, f"{rule}{hint}", value)
    raise EventValidationError(event.event_name, field, f"{rule}{_why_not(value, rule)}{hint}")


def identifier(event: Named, field: attrs.Attribute[str], value: str) -> None:
    if type(value) is str and value.isalnum() and value.isascii() and len(value) <= 50:
        return
    rule = f"must be a str of 1-50 ASCII letters and digits{_unlike(value)}"
    fail(event, field.name, rule, value, uuid_hint(value))


def short_text(event: Named, field: attrs.Attribute[str], value: str) -> None:
    if type(value) is str and 0 < len(value) <= 50 and _encodable(value):
        return
    fail(event, field.name, f"must be a str of 1-50 characters{_unlike(value)}", value)


def optional_short_text(event: Named, field: attrs.Attribute[str | None], value: str | None) -> None:
    if value is None or (type(value) is str and 0 < len(value) <= 50 and _encodable(value)):
        return
    fail(event, field.name, f"must be None or a str of 1-50 characters{_unlike(value)}", value)


def phrase(event: Named, field: attrs.Attribute[str], value: str) -> None:
    if type(value) is str and value and _encodable(value):
        return
    fail(event, field.name, f"must be a str that is not empty{_unlike(value)}", value)


def int64(event: Named, field: attrs.Attribute[int], value: int) -> None:
    if type(value) is int and INT64_MIN <= value <= INT64_MAX:
        return
    fail(event, field.name, f"must be an int of at most 64 bits{_unlike(value)}", value, int_hint(value))


def int64s(event: Named, field: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    if type(value) is not tuple or not value:
        unlike = "" if type(value) is tuple else _unlike(value)
        fail(event, field.name, f"must be a sequence of at least one int{unlike}", value)
    if len(value) > MAX_IDS:
        fail(event, field.name, f"must hold at most {MAX_IDS:,} ids", value)
    for position, item in enumerate(value):
        if type(item) is not int or not INT64_MIN <= item <= INT64_MAX:
            rule = f"must be an int of at most 64 bits{_unlike(item)}"
            fail(event, f"{field.name}[{position}]", rule, item, int_hint(item))


def price(event: Named, field: attrs.Attribute[Number], value: Number) -> None:
    if type(value) not in (int, float, Decimal) or not math.isfinite(on_wire(value)) or value < 0:
        fail(event, field.name, f"must be a finite int, float or Decimal, 0 or more{_unlike(value)}", value)


def quantity(event: Named, field: attrs.Attribute[Number], value: Number) -> None:
    if type(value) not in (int, float, Decimal) or not math.isfinite(number := on_wire(value)) or number <= 0:
        fail(event, field.name, f"must be a finite int, float or Decimal above 0{_unlike(value)}", value)


def moment(event: Named, field: attrs.Attribute[datetime], value: datetime) -> None:
    # Check for UTC first: UTC is the default, and any other zone needs a call.
    zone = value.tzinfo if type(value) is datetime else None
    if zone is UTC or (type(zone) is timezone and not zone.utcoffset(None) % _MINUTE):
        return
    rule = "must be an aware datetime with an offset in whole minutes, e.g. datetime.now(timezone.utc)"
    fail(event, field.name, f"{rule}{_unlike(value)}", value)


def email(event: Named, field: attrs.Attribute[str], value: str) -> None:
    if not _is_email(value):
        fail(event, field.name, f"must be an e-mail address{_unlike(value)}", value)


def optional_email(event: Named, field: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and not _is_email(value):
        fail(event, field.name, f"must be None or an e-mail address{_unlike(value)}", value)


def _is_email(value: str) -> bool:
    # The API document says only "string". This check notices, for example, that two arguments are swapped. A stricter
    # check would refuse addresses that work.
    if type(value) is not str or len(value) > 254 or not _encodable(value):
        return False
    local, at, domain = value.rpartition("@")
    return bool(at and local and domain) and not any(map(str.isspace, value))


def phone(event: Named, field: attrs.Attribute[str | None], value: str | None) -> None:
    if value is None or (type(value) is str and _E164.fullmatch(value)):
        return
    rule = f"must be None or a phone number in E.164 form, e.g. +79161234567{_unlike(value)}"
    fail(event, field.name, rule, value, phone_hint(value))


def json_object(event: Named, field: attrs.Attribute[Any], value: object) -> None:
    fault = _NO_OBJECT if value is None else value
    if isinstance(fault, _NotJson):
        raise EventValidationError(event.event_name, field.name + fault.path, fault.rule)


def optional_json_object(event: Named, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        json_object(event, field, value)


def undocumented(event: Named, field: attrs.Attribute[Any], value: object) -> None:
    """Check the fields of `extra`: JSON values, under names that the API does not document for this event."""
    if value is None:
        return
    json_object(event, field, value)
    documented = _documented(cast("type[attrs.AttrsInstance]", type(event)))
    for name in cast("dict[str, Json]", value):
        known = documented.get(_folded(name))
        if known is not None:
            rule = f"must not hold the documented field {camel(known)!r}"
            rule += f" (as {brief(name)})" if name != camel(known) else ""
            raise EventValidationError(event.event_name, field.name, f"{rule}: use the field {known} of the event")


@functools.cache
def _documented(cls: type[attrs.AttrsInstance]) -> dict[str, str]:
    """Return the Python names of the documented fields of an event class, by their folded names."""
    return {_folded(field.name): field.name for field in attrs.fields(cls) if field.name != "extra"}


def _folded(name: str) -> str:
    # Many JSON parsers ignore case, so "productid" would replace "productId". "product_id" is a field's Python name.
    return name.replace("_", "").casefold()


def _why_not(value: object, rule: str) -> str:
    """Return a hint why a personal value is wrong: its type, or a lone surrogate. The hint does not show the value."""
    # `type` is used and not `isinstance`, because an object's class can make `isinstance` return a wrong answer.
    if not issubclass(type(value), str):
        return "" if rule.endswith(type_name(value)) else f", not {type_name(value)}"
    return "" if _encodable(cast("str", value)) else "; it contains a lone surrogate"


def _unlike(value: object) -> str:
    """Return the text ``", not <type>"`` with the name of the value's type, to append to an error message.

    Return ``""`` if the value is a plain number, str or datetime: the message then shows the value itself.
    """
    # Subclasses of str are named too, because some look like a plain str when printed, e.g. Django's SafeString.
    kind = type(value)
    plain = kind in (str, int, float, Decimal) or issubclass(kind, datetime)
    return "" if plain else f", not {type_name(value)}"


def _encodable(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8; a text with a lone surrogate cannot be encoded."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def on_wire(value: Number) -> int | float:
    """Return `value` as the number that is sent in JSON: an int if the value is whole, otherwise a float.

    An early edition of the API document asks for an integer `quantity`, so `Decimal("2.00")` is sent as ``2``.
    If a float cannot represent the value, the result is infinity or NaN.
    """
    if type(value) is int:
        return value if INT64_MIN <= value <= INT64_MAX else math.inf
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an enormous exponent, or a signalling NaN
        return math.nan
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


class _NotJson(Exception):  # noqa: N818 - never leaves this module
    """A value is not allowed in JSON; the field's validator converts this to an `EventValidationError`.

    Args:
        path: the position of the value in the field, e.g. ``".*[2]"``.
        rule: the rule that the value breaks.
    """

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(path, rule)
        self.path = path
        self.rule = rule


_NO_OBJECT = _NotJson("", "must be a mapping with string keys, not None")


def frozen_object(value: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 - dict, None or _NotJson
    """Return a deep copy of a JSON object, or a `_NotJson`, which the validator turns into a public error."""
    return None if value is None else _frozen_mapping(value, keys_shown=False)


def frozen_extra(value: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 - dict, None or _NotJson
    """Return what `frozen_object` returns, or None for an empty object, because both send no field.

    The keys are names of fields and no personal data, so an error shows the key of a wrong value.
    """
    return None if value is None else _frozen_mapping(value, keys_shown=True) or None


def _frozen_mapping(value: Mapping[str, Any], *, keys_shown: bool) -> Any:  # noqa: ANN401 - dict or _NotJson
    try:
        if isinstance(value, Mapping):
            return _frozen_json(value, "", 0, iter(range(MAX_VALUES)), keys_shown=keys_shown)
    except _NotJson as fault:
        return fault.with_traceback(None)
    except BaseException as error:  # a caller's mapping may raise anything
        if is_interrupt(error):
            raise
        return _NotJson("", f"must be a mapping that can be read: it raised {type(error).__name__}")
    return _NotJson("", f"must be a mapping with string keys, not {type(value).__name__}")


def _frozen_json(value: object, path: str, depth: int, left: Iterator[int], *, keys_shown: bool = False) -> Json:
    """Return a deep copy of `value` made of plain JSON values, or raise `_NotJson`.

    The event must not change when the caller changes the object, so the object is copied. orjson is not used for the
    copy, because orjson would write NaN as null and dates as strings.

    Args:
        value: the value to copy.
        path: the position of the value in the field, for errors.
        depth: the level of nesting.
        left: an iterator with one item for each value that is still allowed.
        keys_shown: whether paths in errors contain the keys of `value` itself.
    """
    if next(left, None) is None:
        raise _NotJson("", f"must hold at most {MAX_VALUES:,} values")
    if not isinstance(value, Mapping | list | tuple):
        return _frozen_scalar(value, path)
    if depth >= MAX_DEPTH:
        raise _NotJson("", f"must not be nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        members = cast("Mapping[object, object]", value)
        return {
            _frozen_key(key, path): _frozen_json(item, f"{path}.{_shown(key, keys_shown)}", depth + 1, left)
            for key, item in members.items()
        }
    items = cast("Sequence[object]", value)
    return [_frozen_json(item, f"{path}[{position}]", depth + 1, left) for position, item in enumerate(items)]


def _shown(key: object, keys_shown: bool) -> str:  # noqa: FBT001 - called for every key
    # A key may be personal data, so a path usually contains "*" instead of the key.
    return key if keys_shown and type(key) is str and len(key) <= 50 and key.isidentifier() else "*"


def _frozen_key(key: object, path: str) -> str:
    if type(key) is str and _encodable(key):
        return key
    raise _NotJson(path, f"must have strings as keys, without lone surrogates; not {type(key).__name__}")


def _frozen_scalar(value: object, path: str) -> Json:
    if value is None or type(value) is bool:
        return value
    if type(value) is str:
        if _encodable(value):
            return value
        raise _NotJson(path, "must not contain a lone surrogate")
    if type(value) is int:
        if INT64_MIN <= value <= INT64_MAX:
            return value
        raise _NotJson(path, "must be an int of at most 64 bits")
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise _NotJson(path, "must be finite: JSON has no NaN and no infinity")
    raise _NotJson(path, f"must hold JSON values only, not {type(value).__name__}")


def id_tuple(value: Sequence[int]) -> tuple[int, ...]:
    """Return a sequence of ids as a tuple; return any other value unchanged, so that the validator refuses it.

    A sequence may be endless, so at most one id more than allowed is read; the validator refuses the longer tuple.
    """
    try:
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
            return tuple(islice(value, MAX_IDS + 1))
    except BaseException as error:  # a caller's sequence may raise anything
        if is_interrupt(error):
            raise
    return cast("tuple[int, ...]", value)


def fixed_moment(value: datetime) -> datetime:
    """Return an aware datetime as a plain datetime with a fixed offset; return any other value unchanged.

    The validator then refuses the unchanged value. Subclasses of datetime (pandas, pendulum, freezegun) and time zones
    are the caller's code, which must run here and not in the encoder: orjson refuses subclasses, and ends the whole
    process if a time zone raises. A fixed offset is also unambiguous in the hour that is repeated when daylight saving
    ends, so a decoded event equals the original (PEP 495).
    """
    try:
        if type(value) is datetime and type(value.tzinfo) is timezone:
            return value
        if isinstance(value, datetime):
            zone = timezone(cast("timedelta", value.utcoffset()))
            time_of_day = value.hour, value.minute, value.second, value.microsecond
            return datetime(value.year, value.month, value.day, *time_of_day, tzinfo=zone)
    except BaseException as error:  # a caller's class may raise anything
        if is_interrupt(error):
            raise
    return value
