"""Judges a request: it is accepted, or refused with a status and the reasons.

The checks come in this order of their statuses: 404, 405, 401, 403, 413, 400. The caller checks the limit (429) between
403 and 413.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import orjson

from ._schema import EVENTS, check_batch, check_event

if TYPE_CHECKING:
    from ._records import RequestRecord
    from ._settings import Settings

__all__ = ["PREFIX", "Events", "Refusal", "events_of", "judge_body", "judge_head"]

PREFIX: Final = "/1.0/"
"""The path of the API's resources."""

_BATCH: Final = "visitorEvents"
_UNKNOWN_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9]*")

Events: TypeAlias = "list[tuple[str, dict[str, Any]]]"
"""The (name, fields) pairs of an accepted request, in their order."""


class Refusal(NamedTuple):
    """Why a request is refused. The client sees the status only; the control side also shows the reasons."""

    status: int
    reasons: list[str]


def judge_head(settings: Settings, record: RequestRecord, query: list[tuple[str, str]]) -> Refusal | None:
    """Return why the path, the method or the credentials of a request are refused; None if they are not."""
    name = record.path.removeprefix(PREFIX)
    known = name in EVENTS or name == _BATCH or (settings.allow_unknown_events and _UNKNOWN_NAME.fullmatch(name))
    if name == record.path or not known:
        return Refusal(404, [f"no such resource: {record.path}"])
    if record.method != "POST":
        return Refusal(405, [f"the method must be POST, not {record.method}"])
    wanted = {"apiKey": settings.api_key, "partnerId": settings.partner_id}
    given = {field: [value for key, value in query if key == field] for field in wanted}
    # The reasons hold no values of the query, since they are copied into bug reports.
    if wrong := [field for field, value in wanted.items() if given[field] != [value]]:
        return Refusal(401, [f"{field} is {'wrong' if given[field] else 'missing'}" for field in wrong])
    if settings.forbidden:
        return Refusal(403, ["access is denied by the setting forbidden"])
    return None


def judge_body(settings: Settings, record: RequestRecord, body: bytes) -> Refusal | Events:
    """Return the events of a request, or why its body is refused."""
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
    check = check_batch if name == _BATCH else partial(check_event, name)
    if reasons := check(data, allow_unknown=settings.allow_unknown_events):
        return Refusal(400, reasons)
    return events_of(record.path, data)


def events_of(path: str, data: Any) -> Events:  # noqa: ANN401 - any JSON value
    """Return the events of an accepted request, from its *path* and *data*, its decoded body."""
    name = path.removeprefix(PREFIX)
    envelopes = data if name == _BATCH else [{name: data}]
    return [pair for envelope in envelopes for pair in envelope.items()]
