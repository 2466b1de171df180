"""Checks that every accepted event and every error must pass, whatever the input was."""

from __future__ import annotations

import json
from typing import Any

import attrs

from retailrocket_async import Codec, CustomEvent, Event
from retailrocket_async._events.codec import join
from retailrocket_async.emulator import Settings
from retailrocket_async.emulator._judge import Refusal, judge_body
from retailrocket_async.emulator._records import RequestRecord
from tests.fuzz.draw import camel

GROWTH = 5
"""The largest ratio of the length of an event's JSON to its input: `1e15,` is written as `1000000000000000.0,`."""

OVERHEAD = 100
"""Bytes by which an event's JSON may be longer in addition, for the timestamp that the codec adds."""

BRIEF = 2_000
"""The most characters of an error. The longest errors list the 12 event names, or nine unknown fields, each cut."""

MAX_BODY = 64 * 1024 * 1024
"""The largest body in bytes that the emulator accepts here, larger than any input."""

EXACT = Codec("microseconds")
"""A codec that writes timestamps with microseconds, so that a decoded event is equal to the encoded event."""

_CODECS = [EXACT, Codec()]


def brief(error: object) -> None:
    """Check that the message of an error has at most `BRIEF` characters."""
    assert len(str(error)) <= BRIEF, f"an error of {len(str(error))} characters"


def sound(event: Event) -> bytes:
    """Check that an event can be encoded, decoded again, and accepted by the emulator; return its envelope."""
    assert isinstance(event, Event)
    for codec in _CODECS:
        path, body = f"/1.0/{event.event_name}", codec.encode_bare(event)
        if event.batchable:
            path, body = "/1.0/visitorEvents", join([codec.encode(event)])
        has_extra = getattr(event, "extra", None) is not None
        verdict = judged(path, body, allow_unknown=type(event) is CustomEvent, allow_extra=has_extra)
        assert not isinstance(verdict, Refusal), f"the emulator refuses it: {verdict}"
    sent = EXACT.encode(event)
    back = EXACT.decode(sent, allow_custom=True, allow_extra=True)
    assert event == back, "it comes back as another event"
    assert sent == EXACT.encode(back), "it is sent another way the second time"
    return sent


def faithful(event: Event, data: bytes | str) -> None:
    """Check that the fields of `event` are those that the standard library's JSON parser reads from `data`."""
    try:
        [body] = json.loads(data).values()
    except RecursionError:  # the value of a repeated key may be nested too deep for this parser
        return
    if isinstance(event, CustomEvent):
        assert _same(event.fields, body), "a custom event's fields are not those of the text"
        return
    documented = {camel(field) for field in attrs.fields_dict(type(event)) if field != "extra"}
    extra = {name: value for name, value in body.items() if name not in documented}
    assert _same(getattr(event, "extra", None) or {}, extra), "the extra fields are not those of the text"
    for field in attrs.fields_dict(type(event)):
        if field == "extra":
            continue
        ours, told = getattr(event, field), body.get(camel(field))
        if field in ("price", "quantity"):
            assert float(ours) == float(told), f"{field} is not that of the text"
        elif field != "timestamp":
            assert _same(list(ours) if isinstance(ours, tuple) else ours, told), f"{field} is not that of the text"


def _same(ours: Any, theirs: Any) -> bool:
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def judged(path: str, body: bytes, *, allow_unknown: bool, allow_extra: bool = False) -> Any:
    """Return the emulator's verdict on a request's body: a `Refusal`, or the events in the body."""
    record = RequestRecord(1, 0.0, "POST", path, {}, "application/json", size=len(body))
    settings = Settings(allow_unknown_events=allow_unknown, allow_unknown_fields=allow_extra, max_body_bytes=MAX_BODY)
    return judge_body(settings, record, body)
