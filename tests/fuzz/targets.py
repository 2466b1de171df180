"""The fuzz targets: functions that take bytes, and raise only if the package has a defect.

Each target passes its bytes, or a value made from them, to a function of the package that reads data from outside. That
function must accept the input, or refuse it with an error of the package. Then these claims must hold:

- An accepted event can be encoded, is equal after decoding, and is accepted by the emulator, which shares no code with
  the package.
- The fields of an accepted event, except the timestamp, are those that another JSON parser reads from the text.
- The JSON of an accepted event is at most `GROWTH` times as long as its text, plus `OVERHEAD` bytes.
- An error is at most `BRIEF` characters long.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

import attrs
import httpx

from retailrocket_async import EVENT_TYPES, ConfigurationError, CustomEvent, EventValidationError, order_lines
from retailrocket_async._events.codec import join
from retailrocket_async._http.base_url import checked_base_url
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.reply import parse_http_date, parse_retry_after
from retailrocket_async.emulator import Settings, create_app
from retailrocket_async.emulator._judge import Refusal
from tests.fuzz import draw as drawn
from tests.fuzz.draw import Draw
from tests.fuzz.files import lines, lines_drawn, row, source
from tests.fuzz.oracle import EXACT, GROWTH, MAX_BODY, OVERHEAD, brief, faithful, judged, sound
from tests.support.strategies import MINIMAL

if TYPE_CHECKING:
    from collections.abc import Callable

Target: TypeAlias = "Callable[[bytes], None]"

_LONG = 10_000
"""The size in bytes from which a body is judged only for three names, because parsing it for each name takes long."""

_NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)


# --- JSON texts ---


def decode(data: bytes) -> None:
    """Decode an event from bytes, and from the same bytes as text, which may have lone surrogates."""
    for text in (data, data.decode(errors="surrogateescape")):
        for allowed in (False, True):
            try:
                event = EXACT.decode(text, allow_custom=allowed, allow_extra=allowed)
            except EventValidationError as error:
                brief(error)
                continue
            assert len(sound(event)) <= GROWTH * len(data) + OVERHEAD, "it grows"
            faithful(event, text)


def decode_drawn(data: bytes) -> None:
    """Decode the JSON text of an envelope that is nearly valid."""
    decode(drawn.envelope(Draw(data)))


# --- Python values ---


def construct(data: bytes) -> None:
    """Pass any values to the constructor of an event."""
    draw = Draw(data)
    cls = draw.pick([*EVENT_TYPES.values(), CustomEvent])
    if cls is CustomEvent:
        made = {"name": drawn.value(draw) if draw.chance(2) else "newEvent", "fields": drawn.value(draw)}
    else:
        made = drawn.fields(draw, cls, list(attrs.fields_dict(cls)))
    try:
        event = cls(**made)
    except EventValidationError as error:
        brief(error)
    else:
        sound(event)


def order(data: bytes) -> None:
    """Pass any lines and any shared fields to `order_lines`."""
    draw = Draw(data)
    good = {"product_id": 1, "quantity": 1, "price": 1}
    lines: Any = [
        {**good, draw.pick(["product_id", "quantity", "price", "stock_id", "sku"]): drawn.value(draw)}
        if draw.chance(2)
        else drawn.value(draw)
        for _ in range(draw.byte() % 4)
    ]
    lines = draw.pick([list, tuple, iter, lambda _: drawn.value(draw)])([good, *lines])
    shared: dict[str, Any] = {"session_external_id": "a", "transaction": "1"}
    for _ in range(draw.byte() % 2):
        shared[draw.pick(["session_external_id", "transaction", "stock_id", "timestamp"])] = drawn.value(draw)
    try:
        orders = order_lines(lines, **shared)
    except EventValidationError as error:
        brief(error)
    else:
        assert orders
        for event in orders:
            sound(event)


def structure(data: bytes) -> None:
    """Decode an envelope from Python values, which no JSON parser may have returned."""
    draw = Draw(data)
    cls = draw.pick(list(EVENT_TYPES.values()))
    body: Any = EXACT.to_wire(cls(session_external_id="a", **MINIMAL[cls]))[cls.wire_name]
    for _ in range(draw.byte() % 3):
        body[draw.pick(list(body)) if draw.chance(2) else draw.text()] = drawn.value(draw)
    found = draw.pick([{cls.wire_name: body}, {cls.wire_name: drawn.value(draw)}, drawn.value(draw)])
    for allowed in (False, True):
        try:
            event = EXACT.from_wire(found, allow_custom=allowed, allow_extra=allowed)
        except EventValidationError as error:
            brief(error)
        else:
            sound(event)


# --- headers and configuration ---


def headers(data: bytes) -> None:
    """Read a date and a Retry-After header of an answer."""
    for text in (data.decode("latin-1"), data.decode(errors="surrogateescape")):
        moment = parse_http_date(text)
        assert moment is None or moment.utcoffset() is not None
        for now in (_NOW, moment or _NOW, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            seconds = parse_retry_after(text, now=now)
            assert seconds is None or seconds >= 0


def base_url(data: bytes) -> None:
    """Check a base URL."""
    # A URL of more than 65,536 characters is refused because of its length, so longer inputs show nothing new.
    data = data[:70_000]
    plain = data.decode("latin-1")
    for text in (plain, data.decode(errors="surrogateescape"), "https://" + plain, "https://a/" + plain):
        for allow_insecure in (False, True):
            try:
                checked = checked_base_url(text, allow_insecure=allow_insecure)
            except ConfigurationError as error:
                brief(error)
            else:
                _check_url(checked, allow_insecure=allow_insecure)


def _check_url(checked: str, *, allow_insecure: bool) -> None:
    again = checked_base_url(checked, allow_insecure=allow_insecure)
    assert checked.casefold() == again.casefold(), "checked twice, it differs"
    url = httpx.URL(checked + "visitorEvents")
    assert url.raw_path.endswith(b"/visitorEvents")
    assert b"" == url.query == url.userinfo
    assert "" == url.fragment
    assert 1 <= (url.port or 443) <= 65_535
    assert url.netloc.decode("ascii")
    if url.scheme == "http" and not allow_insecure:
        assert url.host == "localhost" or ip_address(url.host).is_loopback, "the key would be read on the way"


def credentials(data: bytes) -> None:
    """Check a key, and check that the query of a request contains exactly this key."""
    for text in (data.decode("latin-1"), data.decode(errors="surrogateescape")):
        try:
            target = Credentials(text, "shop").target(b"/")
        except ConfigurationError as error:
            brief(error)
        else:
            assert [("apiKey", text), ("partnerId", "shop")] == parse_qsl(target.decode("ascii").partition("?")[2])


# --- the emulator ---


def judge(data: bytes) -> None:
    """Let the emulator judge a body, and check its verdict."""
    for allow_unknown in (False, True):
        for name in ("visitorEvents", "groupView", *(EVENT_TYPES if len(data) < _LONG else ()), "newEvent"):
            verdict = judged(f"/1.0/{name}", data, allow_unknown=allow_unknown)
            if isinstance(verdict, Refusal):
                assert verdict.status == 400
                assert 0 < len(verdict.reasons) <= 1_001
                assert all(len(reason) < 300 for reason in verdict.reasons)
            else:
                assert all(type(name) is str and type(fields) is dict for name, fields in verdict)


def judge_drawn(data: bytes) -> None:
    """Let the emulator judge a batch that is nearly valid."""
    draw = Draw(data)
    judge(join(drawn.envelope(draw) for _ in range(1 + draw.byte() % 3)))


_PATHS = [
    *("/1.0/visitorEvents", "/1.0/view", "/1.0/newEvent", "/1.0/", "/", "/_control/faults", "/_control/settings"),
    *("/_control/events", "/_control/requests", "/_control/refused", "/_control/reset", "/_control/stats"),
]
_QUERY = b"apiKey=dev-api-key&partnerId=dev-partner"


def serve(data: bytes) -> None:
    """Send any request to the emulator, then read all reports of its control side."""
    draw = Draw(data)
    app = create_app(Settings(allow_unknown_events=draw.chance(2), seed=1, max_body_bytes=MAX_BODY))
    request = {
        "method": draw.pick(["POST", "PATCH", "GET", "DELETE", "PUT"]),
        "path": draw.bytes().decode(errors="replace") if draw.chance(8) else draw.pick(_PATHS),
        "query_string": draw.bytes() if draw.chance(4) else _QUERY,
        "headers": [(b"content-type", draw.bytes() if draw.chance(8) else b"application/json")],
    }
    body = drawn.envelope(draw) if draw.chance(2) else draw.rest()
    asyncio.run(_exchange(app, request, b"[%b]" % body if draw.chance(2) else body))


async def _exchange(app: Any, request: dict[str, Any], body: bytes) -> None:
    status, _ = await _answer(app, request, body)
    assert 200 <= status < 500, f"it answers {status}"
    for name in ("stats", "events", "requests", "refused", "violations", "faults"):
        asked = {"method": "GET", "path": f"/_control/{name}", "query_string": b"", "headers": []}
        status, told = await _answer(app, asked, b"")
        assert status == 200
        json.loads(told)


async def _answer(app: Any, request: dict[str, Any], body: bytes) -> tuple[int, bytes]:
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        told.append(message)

    await app({"type": "http", "http_version": "1.1", "root_path": "", "scheme": "http", **request}, receive, send)
    return told[0]["status"], b"".join(message.get("body", b"") for message in told[1:])


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        decode,
        decode_drawn,
        construct,
        order,
        structure,
        lines,
        lines_drawn,
        row,
        source,
        headers,
        base_url,
        credentials,
        judge,
        judge_drawn,
        serve,
    )
}
"""Every target by its name."""

DRAWN = {"decode_drawn", "construct", "order", "structure", "lines_drawn", "judge_drawn"}
"""The targets that take all of their bytes as decisions, so a meaningful text is of no use as their input."""
