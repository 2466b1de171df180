"""Judges a request by itself: decides whether the request is accepted, or refused with a status and reasons.

The checks are made in the order 404, 405, 401, 403, 413, 400, where each check is named by the status of a refusal. The
caller checks the limit (429) after `judge_head` (404 to 403) and before `judge_body` (413 and 400), and with
`Settings.strict_order` the order of a visitor's events (409) at last.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

import orjson

from ._schema import EVENTS, check_batch, check_event

if TYPE_CHECKING:
    from ._records import RequestRecord
    from ._settings import Settings

__all__ = ["BATCH", "PREFIX", "Events", "Refusal", "events_of", "judge_body", "judge_head", "readable_events"]

PREFIX: Final = "/1.0/"
"""The path before the name of each resource of the API."""

BATCH: Final = "visitorEvents"
"""The name of the resource that accepts batches."""

_UNKNOWN_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9]*")

Events: TypeAlias = "list[tuple[str, dict[str, Any]]]"
"""The events of an accepted request as (name, fields) pairs, in the order of the request."""


class Refusal(NamedTuple):
    """The status and the reasons of a refused request. The client gets only the status; the control side shows both."""

    status: int
    reasons: list[str]


def judge_head(settings: Settings, record: RequestRecord, query: list[tuple[str, str]]) -> Refusal | None:
    """Return the refusal if a request's path, method or credentials are wrong, or None if all of them are right."""
    name = record.path.removeprefix(PREFIX)
    known = name in EVENTS or name == BATCH or (settings.allow_unknown_events and _UNKNOWN_NAME.fullmatch(name))
    if name == record.path or not known:
        return Refusal(404, [f"no such resource: {record.path}"])
    if record.method != "POST":
        return Refusal(405, [f"the method must be POST, not {record.method}"])
    wanted = {"apiKey": settings.api_key, "partnerId": settings.partner_id}
    given = {field: [value for key, value in query if key == field] for field in wanted}
    # Reasons are copied into bug reports, so the reasons must not contain values of the query.
    if wrong := [field for field, value in wanted.items() if given[field] != [value]]:
        return Refusal(401, [f"{field} is {'wrong' if given[field] else 'missing'}" for field in wrong])
    if settings.forbidden:
        return Refusal(403, ["access is denied by the setting forbidden"])
    return None


def judge_body(settings: Settings, record: RequestRecord, body: bytes) -> Refusal | Events:
    """Return the events in a request's body, or the refusal if the body is wrong."""
    if record.size > settings.max_body_bytes:
        return Refusal(413, [f"the body must be at most {settings.max_body_bytes} bytes, not {record.size}"])
    media_type, _, _ = (record.content_type or "").partition(";")
    if media_type.strip().lower() != "application/json":
        return Refusal(400, [f"Content-Type must be application/json, not {record.content_type!r}"])
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return Refusal(400, [f"body: must be JSON: {error}"])
    name = record.path.removeprefix(PREFIX)
    check = check_batch if name == BATCH else partial(check_event, name)
    allowed = {"allow_unknown": settings.allow_unknown_events, "allow_extra": settings.allow_unknown_fields}
    if reasons := check(data, **allowed):
        return Refusal(400, reasons)
    return events_of(record.path, data)


def events_of(path: str, data: Any) -> Events:  # noqa: ANN401 - any JSON value
    """Return the events of an accepted request from the request's *path* and *data*, the decoded body."""
    name = path.removeprefix(PREFIX)
    envelopes = data if name == BATCH else [{name: data}]
    return [pair for envelope in envelopes for pair in envelope.items()]


def readable_events(path: str, body: bytes) -> Events:
    """Return the events in a request's *body* that is not judged, or was refused; everything malformed is left out."""
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    name = path.removeprefix(PREFIX)
    envelopes = data if name == BATCH else [{name: data}]
    if type(envelopes) is not list:
        return []
    objects = [cast("dict[str, Any]", item) for item in cast("list[object]", envelopes) if type(item) is dict]
    return [(name, fields) for item in objects for name, fields in item.items() if type(fields) is dict]
