"""Encodes events as the API's JSON, and decodes that JSON.

::

    Event  --encode-->  b'{"view":{"sessionExternalId":...}}'   an envelope; `visitorEvents` takes a list of them
    Event  --encode_bare-->  b'{"sessionExternalId":...}'       the body of the event's own endpoint
    envelopes  --join-->  b'[{"view":...},{"search":...}]'      the body of `visitorEvents`
    object from JSON  --from_wire-->  Event                     files and brokers

When a codec is constructed, cattrs generates two conversion functions for each event class; orjson writes the bytes.
Source: API document, "Events" and "Batches".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import attrs
import orjson
from cattrs import Converter
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from retailrocket_async._errors import ConfigurationError, EventValidationError, brief_names
from retailrocket_async._events.long_integers import exact_json, has_long, has_long_integer
from retailrocket_async._events.models import EVENT_TYPES, CustomEvent, EmailClick, Event, SetContact, VisitorEvent
from retailrocket_async._events.names import camel, snake
from retailrocket_async._events.passthrough import Passthrough
from retailrocket_async._events.validators import on_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TimestampPrecision: TypeAlias = Literal["seconds", "milliseconds", "microseconds"]
"""The precision of the `timestamp` that is sent; the API document shows whole seconds only."""

BATCH_PATH = "visitorEvents"
"""The batch endpoint, relative to the base URL."""


_FREE: dict[type[Event], str] = {CustomEvent: "fields", SetContact: "custom_data", EmailClick: "custom_data"}
"""Fields that may contain any JSON, apart from `extra`. Their validator cannot notice an integer that orjson has turned
into a float."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)

_ESCAPED_COLON = rb"\u003"
"""The start of an escaped colon (``\\u003a``); the escapes of some other characters have the same start."""

_WRITTEN_ANEW = 64 * 1024
"""Largest text, in bytes, that is encoded again to count its keys. This takes 50 times as much memory as the text."""

_NOT_PLAIN = frozenset({"stock_id", "email", "phone", "custom_data", "product_ids"})
"""Fields that are passed to orjson unchanged; cattrs would convert their contents value by value, which is slow."""


class Codec:
    """Converts events to the API's JSON and back. A codec has no state, so many clients may share one codec.

    Args:
        timestamp_precision: ``"seconds"`` (default: the only documented pattern), ``"milliseconds"`` or
            ``"microseconds"``. Finer digits are cut off, not rounded, so that no timestamp is moved into the future.

    Raises:
        ConfigurationError: `timestamp_precision` is not one of these values.
    """

    def __init__(self, timestamp_precision: TimestampPrecision = "seconds") -> None:
        if timestamp_precision not in get_args(TimestampPrecision):
            allowed = ", ".join(map(repr, get_args(TimestampPrecision)))
            raise ConfigurationError(f"timestamp_precision must be one of {allowed}, not {timestamp_precision!r}")
        self.timestamp_precision: TimestampPrecision = timestamp_precision
        self._option = orjson.OPT_OMIT_MICROSECONDS if timestamp_precision == "seconds" else 0
        # Without detailed validation, cattrs raises a single error instead of nested exception groups.
        converter = Converter(detailed_validation=False)
        self._to_object: dict[type[Event], Callable[[Any], dict[str, Any]]] = {CustomEvent: _custom_fields}
        self._from_object: dict[str, Callable[[Any, Any], Event]] = {}
        for name, cls in EVENT_TYPES.items():
            self._to_object[cls] = self._unstructure_fn(cls, converter)
            self._from_object[name] = _structure_fn(cls, converter)
        self._documented = {name: _documented_of(cls) for name, cls in EVENT_TYPES.items()}
        self._passthrough = Passthrough()
        self._encoders = {cls: _encoder(name, self._to_object[cls], self._option) for name, cls in EVENT_TYPES.items()}

    def __reduce__(self) -> tuple[type[Codec], tuple[TimestampPrecision]]:
        # The generated functions cannot be pickled, so unpickling builds a new codec with the same precision.
        return type(self), (self.timestamp_precision,)

    def encode(self, event: Event) -> bytes:
        """Return the envelope of `event`, e.g. ``b'{"view":{...}}'``.

        Raises:
            EventValidationError: `event` is not an event of this package.
        """
        encoder = self._encoders.get(type(event))  # type: ignore[arg-type]
        if encoder is None:
            return b'{"%b":%b}' % (self._name_of(event).encode(), self.encode_bare(event))
        return encoder(event)

    def encode_bare(self, event: Event) -> bytes:
        """Return the event's JSON without its name: the body of a request to the event's own endpoint.

        Raises:
            EventValidationError: `event` is not an event of this package.
        """
        self._name_of(event)
        fields = self._to_object[type(event)](event)
        if isinstance(event, VisitorEvent) and event.extra is not None:
            fields |= event.extra
        return orjson.dumps(fields, None, self._option)

    def to_wire(self, event: Event) -> dict[str, Any]:
        """Return the envelope of `event` as plain JSON values, e.g. ``{"view": {"productId": 1, ...}}``.

        Raises:
            EventValidationError: `event` is not an event of this package.
        """
        envelope: dict[str, Any] = orjson.loads(self.encode(event))
        return envelope

    def from_wire(self, envelope: object, *, allow_custom: bool = False, allow_extra: bool = False) -> Event:
        """Return the event that `envelope`, an object with exactly one key, describes.

        Args:
            envelope: plain JSON values, as `to_wire` returns them.
            allow_custom: whether to decode an unknown event name as a `CustomEvent`; default False, because a
                mistyped name would become a custom event.
            allow_extra: whether to decode unknown fields of a documented event as its `extra`; default False, because
                a mistyped field would become an extra field.

        Raises:
            EventValidationError: `envelope` is not an envelope, its event or a field is unknown, a required field is
                missing, or a value breaks a rule.
        """
        members = _plain(envelope)
        if members is None or len(members) != 1:
            raise EventValidationError("event", "", 'must be an object with exactly one key, e.g. {"view": {...}}')
        [(name, body)] = members.items()
        structure = self._from_object.get(cast("str", name))
        if structure is None:
            if allow_custom:
                return CustomEvent(name=cast("str", name), fields=cast("dict[str, Any]", body))
            known = ", ".join(EVENT_TYPES)
            raise EventValidationError("event", "", f"must have one of these names: {known}", name)
        name = cast("str", name)
        fields = _plain(body)
        if fields is None:
            raise EventValidationError(name, "", f"must be an object, not {type(body).__name__}")
        extra: dict[Any, Any] = {}
        if allow_extra:
            documented = self._documented[name]
            extra = {key: value for key, value in fields.items() if key not in documented}
            fields = {key: value for key, value in fields.items() if key in documented} if extra else fields
        try:
            event = structure(fields, None)
        except ForbiddenExtraKeysError as error:
            raise EventValidationError(name, "", f"has unknown fields: {brief_names(error.extra_fields)}") from None
        except KeyError as error:
            raise EventValidationError(name, snake(str(error.args[0])), "is required") from None
        return attrs.evolve(cast("VisitorEvent", event), extra=extra) if extra else event

    def decode(self, data: bytes | str, *, allow_custom: bool = False, allow_extra: bool = False) -> Event:
        """Return the event that the JSON text of an envelope describes; see `from_wire`.

        An integer of more than 64 bits is refused in every field but `price` and `quantity`, which may be fractions.
        An object that has a key twice is refused at any depth, because some JSON parsers use the first value and some
        the last.

        Raises:
            EventValidationError: `data` is not JSON; see also `from_wire`.
        """
        try:
            envelope = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise EventValidationError("event", "", f"must be JSON: {error.msg} at column {error.colno}") from None
        text = data.encode() if isinstance(data, str) else bytes(data)
        if _has_key_twice(text, envelope):
            raise EventValidationError("event", "", _key_twice(text))
        event = self.from_wire(envelope, allow_custom=allow_custom, allow_extra=allow_extra)
        if _may_have_long_integer(event) and has_long_integer(text):
            field = self._field_with_long_integer(event, text)
            if field is not None:
                raise EventValidationError(event.event_name, field, "must hold integers of at most 64 bits")
        return event

    def examined(self, data: bytes, *, allow_custom: bool = False, allow_extra: bool = False) -> tuple[str, str, bytes]:
        """Check an envelope; return the event's name, the visitor's session id, and the envelope to send.

        The session id is ``""`` if the event has no session id. If `data` can be sent unchanged, the envelope to send
        is `data`; otherwise this codec encodes the event again.

        Raises:
            EventValidationError: see `decode`.
        """
        if self.timestamp_precision == "seconds":
            with suppress(orjson.JSONDecodeError):
                envelope = orjson.loads(data)
                label = self._passthrough.label_of(envelope)
                if label is not None and not _has_key_twice(data, envelope):
                    return *label, data
        event = self.decode(data, allow_custom=allow_custom, allow_extra=allow_extra)
        return event.event_name, visitor_of(event), self.encode(event)

    def _field_with_long_integer(self, event: Event, text: bytes) -> str | None:
        """Return the field that contains any JSON and in it an integer of more than 64 bits; None if no field does.

        A price and a quantity may have more digits.
        """
        fields = exact_json(text)[event.event_name]
        if isinstance(event, CustomEvent):
            return "fields" if has_long(fields) else None
        documented = self._documented[event.event_name]
        for name, value in fields.items():
            if (name == "customData" or name not in documented) and has_long(value):
                return snake(name) if name in documented else "extra"
        return None

    def _name_of(self, event: Event) -> str:
        if type(event) not in self._to_object:
            rule = f"must be an event of this package, e.g. View(...), not {type(event).__name__}"
            raise EventValidationError("event", "", rule)
        return event.event_name

    def _unstructure_fn(self, cls: type[Event], converter: Converter) -> Callable[[Any], dict[str, Any]]:
        overrides: dict[str, Any] = {
            field.name: override(
                rename=camel(field.name),
                omit=field.name == "extra",
                omit_if_default=field.default is None,
                unstruct_hook=self._unstructure_hook(field.name),
            )
            for field in attrs.fields(cls)
        }
        return make_dict_unstructure_fn(cls, converter, **overrides)

    def _unstructure_hook(self, field: str) -> Callable[[Any], Any] | None:
        if field in ("price", "quantity"):
            return on_wire
        if field == "timestamp" and self.timestamp_precision == "milliseconds":
            return lambda moment: cast("datetime", moment).isoformat(timespec="milliseconds")
        # If the hook is None, cattrs reads the attribute without calling a function, which is faster.
        return _as_is if field in _NOT_PLAIN else None


def _encoder(name: str, to_object: Callable[[Any], dict[str, Any]], option: int) -> Callable[[Any], bytes]:
    """Return a function that encodes the events of one class. It is fast, because it uses only local variables."""
    head, dumps = b'{"%b":' % name.encode(), orjson.dumps

    def encode(event: Any) -> bytes:  # noqa: ANN401 - an event of the class that `to_object` converts
        fields = to_object(event)
        if event.extra is not None:
            fields |= event.extra
        # The concatenation makes a copy, which is only as large as needed. The object that orjson returns occupies
        # about 4 KB, so the copy saves memory.
        return head + dumps(fields, None, option) + b"}"

    return encode


def label_of(envelope: bytes) -> tuple[str, str]:
    """Return the event's name and the visitor's session id (``""`` if the event has no session id)."""
    members: dict[str, dict[str, Any]] = orjson.loads(envelope)
    [(name, fields)] = members.items()
    return name, str(fields.get("sessionExternalId", ""))


def name_of(envelope: bytes) -> str:
    """Return the name of the event in a valid envelope."""
    if envelope.startswith(b'{"'):
        name = envelope[2 : envelope.index(b'"', 2)]
        if b"\\" not in name:
            return name.decode()
    # The envelope was not written by a codec, and has white space before the name, or an escape in it.
    return label_of(envelope)[0]


def bare(envelope: bytes) -> bytes:
    """Return the event's JSON without its name: the body of a request to the event's own endpoint.

    Args:
        envelope: a valid envelope, which may contain white space.
    """
    # The name of an event contains neither a quotation mark nor a colon.
    return envelope[envelope.index(b":") + 1 : envelope.rindex(b"}")].strip()


def join(envelopes: Iterable[bytes]) -> bytes:
    """Return the body of a `visitorEvents` request with `envelopes`, in order."""
    return b"[%b]" % b",".join(envelopes)


def _structure_fn(cls: type[Event], converter: Converter) -> Callable[[Any, Any], Event]:
    # Pass values unchanged to the validators of the class, because cattrs would convert "1" to 1.
    overrides: dict[str, Any] = {
        field.name: override(
            rename=camel(field.name),
            omit=field.name == "extra",
            struct_hook=_moment if field.name == "timestamp" else _structured_as_is,
        )
        for field in attrs.fields(cls)
    }
    structure = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **overrides)
    return cast("Callable[[Any, Any], Event]", structure)


def _plain(value: object) -> dict[object, object] | None:
    """Return a dict unchanged, an object of a subclass of dict as a plain dict, and None for any other value."""
    # Call no method of a subclass, because such a method may raise any error.
    if not issubclass(type(value), dict):
        return None
    members = cast("dict[object, object]", value)
    return members if type(members) is dict else dict(dict[object, object].items(members))


def _has_key_twice(data: bytes, value: object) -> bool:
    """Whether an object in a JSON text contains the same key twice.

    Args:
        data: the text.
        value: the decoded text. If a key occurs twice, orjson keeps the last value.
    """
    # If `value` is encoded again, each key occurs once. Colons occur only after a key or inside a string. So if the
    # number of colons is unchanged, no key occurred twice. This fails for a text with an escaped colon: the second
    # encoding does not escape the colon, which changes the number.
    if len(data) <= _WRITTEN_ANEW and _ESCAPED_COLON not in data:
        try:
            written = orjson.dumps(value)
        except orjson.JSONEncodeError:
            # The value is nested too deeply for the encoder of orjson.
            pass
        else:
            return written != data and written.count(b":") != data.count(b":")
    return _STRING.sub(b"", data).count(b":") != _count_keys(value)


def _count_keys(value: object) -> int:
    """Return the total number of keys of all objects in a JSON value."""
    count, left = 0, [value]
    while left:
        each = left.pop()
        if type(each) is dict:
            members = cast("dict[str, object]", each)
            count += len(members)
            left += members.values()
        elif type(each) is list:
            left += cast("list[object]", each)
    return count


def _key_twice(data: bytes) -> str:
    """Return the error message for a JSON text that contains a key twice; the message names the key if possible."""
    found: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for name, times in Counter(names).items() if times > 1)

    with suppress(ValueError, RecursionError):
        json.loads(data, object_pairs_hook=collect)
    return f"must have each key once, but has twice: {brief_names(found[:1])}" if found else "must have each key once"


def _as_is(value: object) -> object:
    return value


def _structured_as_is(value: object, _: object) -> object:
    return value


def _moment(value: object, _: object) -> object:
    # Text with unprintable characters is refused, because `datetime.fromisoformat` ignores everything after a NUL
    # character.
    if type(value) is str and value.isprintable():
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return value
    return value


def visitor_of(event: Event) -> str:
    """Return the session id of the visitor of an event; ``""`` if the event has no session id."""
    if isinstance(event, CustomEvent):
        return str(event.fields.get("sessionExternalId", ""))
    return str(getattr(event, "session_external_id", ""))


def _custom_fields(event: CustomEvent) -> dict[str, Any]:
    return event.fields


def _documented_of(cls: type[Event]) -> frozenset[str]:
    """Return the JSON names of the documented fields of an event class."""
    return frozenset(camel(field.name) for field in attrs.fields(cls) if field.name != "extra")


def _may_have_long_integer(event: Event) -> bool:
    """Whether an event has a value in a field that may contain any JSON."""
    free = _FREE.get(type(event))
    return bool((free is not None and getattr(event, free)) or getattr(event, "extra", None))
