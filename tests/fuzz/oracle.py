"""What must hold of every event that was accepted, and of every error, whatever the input was."""

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
"""`1e15,` is the worst: it is written as `1000000000000000.0,`."""

OVERHEAD = 100
"""Bytes for the timestamp that an event without one is given."""

BRIEF = 2_000
"""Characters of an error: the 12 names of events, or nine unknown fields, each cut short."""

MAX_BODY = 64 * 1024 * 1024
"""Bytes that the emulator takes here: more than any case has."""

EXACT = Codec("microseconds")
"""Writes whole timestamps, so that an event comes back as it was."""

_CODECS = [EXACT, Codec()]


def brief(error: object) -> None:
    """Check that an error is short."""
    assert len(str(error)) <= BRIEF, f"an error of {len(str(error))} characters"


def sound(event: Event) -> bytes:
    """Return the envelope of `event`, once it is sure that it can be sent, read again and recorded."""
    assert isinstance(event, Event)
    for codec in _CODECS:
        envelope = codec.encode(event)
        verdict = judged("/1.0/visitorEvents", join([envelope]), allow_unknown=type(event) is CustomEvent)
        assert not isinstance(verdict, Refusal), f"the emulator refuses it: {verdict}"
    sent = EXACT.encode(event)
    back = EXACT.decode(sent, allow_custom=True)
    assert event == back, "it comes back as another event"
    assert sent == EXACT.encode(back), "it is sent another way the second time"
    return sent


def faithful(event: Event, data: bytes | str) -> None:
    """Compare `event` with what the standard library reads in the text that it came from."""
    try:
        [body] = json.loads(data).values()
    except RecursionError:  # a value that a repeated key hides may be deeper than this reader goes
        return
    if isinstance(event, CustomEvent):
        assert _same(event.fields, body), "a custom event's fields are not those of the text"
        return
    for field in attrs.fields_dict(type(event)):
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


def judged(path: str, body: bytes, *, allow_unknown: bool) -> Any:
    """Return the emulator's verdict on a body: a `Refusal`, or the events in it."""
    record = RequestRecord(1, 0.0, "POST", path, {}, "application/json", size=len(body))
    settings = Settings(allow_unknown_events=allow_unknown, max_body_bytes=MAX_BODY)
    return judge_body(settings, record, body)
