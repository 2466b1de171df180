"""Records the latest requests and events in bounded memory, and counts all of them."""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from ._judge import Events, events_of
from ._records import EventRecord, RequestRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Ledger"]

# A parcel stores the accepted events of one request: the number of the first event, the number of events, the number of
# the request, the path of the request, and the body of the request. The body is stored as bytes, and parsed again when
# a caller asks for events. With 200,000 events as objects, each garbage collection would stop the event loop for a long
# time. Requests that arrive meanwhile would be counted together, so requests within the limit would be refused. For the
# same reason a parcel is a plain tuple: the garbage collector does not check a tuple that contains only numbers,
# strings and bytes.
_Parcel: TypeAlias = "tuple[int, int, int, str, bytes | Events]"

_REQUESTS: Final = 1_000
_BODY: Final = 65_536


class Ledger:
    """Keeps the latest events and requests, and counts all of them.

    `open` is called when a request arrives, and `close` when the request's answer is decided. If a request is
    opened before `clear` and closed after `clear`, the request is not counted, so that requests of one test do not
    appear in the next test.

    Args:
        keep: how many accepted events are stored, default 200,000; the oldest are dropped first.
    """

    def __init__(self, keep: int = 200_000) -> None:
        self._keep = keep
        self._parcels: deque[_Parcel] = deque()
        self._requests: deque[RequestRecord] = deque(maxlen=_REQUESTS)
        self._refused: deque[RequestRecord] = deque(maxlen=_REQUESTS)
        self._open: set[RequestRecord] = set()
        self._names: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._arrived = self._accepted = self._refusals = self._bytes = 0

    @property
    def total_events(self) -> int:
        """How many events were accepted, including those that are no longer stored."""
        return self._accepted

    @property
    def total_requests(self) -> int:
        """How many requests have arrived since the last `clear`."""
        return self._arrived

    def open(
        self, *, time: float, method: str, path: str, query: dict[str, str], content_type: str | None
    ) -> RequestRecord:
        """Count a request that has just arrived, and return its record."""
        self._arrived += 1
        record = RequestRecord(self._arrived, time, method, path, query, content_type)
        self._requests.append(record)
        self._open.add(record)
        return record

    def read(self, record: RequestRecord, body: bytes, size: int) -> None:
        """Record the *body* of a request, and *size*, the length in bytes of the body before any cut."""
        record.body, record.size = body[:_BODY], size
        if record in self._open:
            self._bytes += size

    def accept(
        self, record: RequestRecord, events: Sequence[tuple[str, dict[str, Any]]], body: bytes | None = None
    ) -> None:
        """Record the accepted events of a request.

        Args:
            record: the request.
            events: the (name, fields) pairs, in the order of the request.
            body: the JSON of *events*, stored instead of *events* to save memory; None (default) stores *events*.
        """
        record.events = len(events)
        if record not in self._open:
            return
        self._parcels.append(
            (self._accepted + 1, len(events), record.number, record.path, list(events) if body is None else body)
        )
        self._accepted += len(events)
        self._names.update(name for name, _ in events)
        oldest = self._accepted - self._keep
        while self._parcels and _last_seq(self._parcels[0]) <= oldest:
            self._parcels.popleft()

    def refuse(self, record: RequestRecord, reasons: Sequence[str]) -> None:
        """Record that a request was refused, and why."""
        record.reasons = list(reasons)
        if record in self._open:
            self._refusals += 1
            self._refused.append(record)

    def close(self, record: RequestRecord, status: int | None) -> bool:
        """Record the *status* of the answer; None for a request that gets no answer.

        Returns:
            True if the request is counted; False if the request was opened before `clear`.
        """
        record.status = status
        if record not in self._open:
            return False
        self._open.remove(record)
        self._statuses["none" if status is None else str(status)] += 1
        return True

    def events(
        self, name: str | None = None, session: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[EventRecord]:
        """Return the accepted events that are still stored, oldest first.

        Args:
            name: only events of this name; None (default) for all.
            session: only events of this `sessionExternalId`; None (default) for all.
            after: only events with a higher `seq`; default 0.
            limit: the most events to return, the oldest first; None (default) for all.
        """
        # Only whole parcels (all events of one request) are dropped, so the oldest parcel may contain events that are
        # older than the last `keep` events. These events are left out here.
        after = max(after, self._accepted - self._keep)
        wanted = [text.encode(errors="surrogatepass") for text in (name, session) if text is not None]
        found = (
            EventRecord(seq, parcel[2], its_name, fields)
            for parcel in self._parcels
            if _last_seq(parcel) > after and _may_hold(parcel, wanted)
            for seq, (its_name, fields) in enumerate(_unpacked(parcel), parcel[0])
            if seq > after
            and (name is None or its_name == name)
            and (session is None or fields.get("sessionExternalId") == session)
        )
        return list(islice(found, limit))

    def requests(self, limit: int | None = None) -> list[RequestRecord]:
        """Return the last requests, oldest first: at most *limit*, and never more than 1,000."""
        return _last(self._requests, limit)

    def refused(self, limit: int | None = None) -> list[RequestRecord]:
        """Return the last refused requests, oldest first: at most *limit*, and never more than 1,000."""
        return _last(self._refused, limit)

    def body(self, record: RequestRecord) -> bytes:
        """Return the body of a request: the whole body if the request is recent and was accepted.

        Of any other request, return only the part of the body that *record* contains.
        """
        if record.events and record.size > len(record.body):
            for *_, number, _, held in islice(reversed(self._parcels), _REQUESTS):
                if number == record.number and isinstance(held, bytes):
                    return held
        return record.body

    def stats(self) -> dict[str, Any]:
        """Return the counters since the last `clear`, as JSON-ready data.

        The counters are ``requests``, ``in_flight`` (requests not answered yet), ``statuses`` (answers by status,
        ``"none"`` for requests without an answer), ``events`` (accepted events by name), ``total_events``, ``refused``
        (refused requests) and ``bytes`` (of all bodies).
        """
        return {
            "requests": self._arrived,
            "in_flight": len(self._open),
            "statuses": dict(self._statuses),
            "events": dict(self._names),
            "total_events": self._accepted,
            "refused": self._refusals,
            "bytes": self._bytes,
        }

    def clear(self) -> None:
        """Forget all requests and events. The numbers of later requests and events start at 1 again."""
        for held in (self._parcels, self._requests, self._refused, self._open, self._names, self._statuses):
            held.clear()
        self._arrived = self._accepted = self._refusals = self._bytes = 0


def _last_seq(parcel: _Parcel) -> int:
    first, count, *_ = parcel
    return first + count - 1


def _may_hold(parcel: _Parcel, texts: Sequence[bytes]) -> bool:
    """Return whether *parcel* may have an event with all of *texts*. If False, the body need not be parsed."""
    *_, path, held = parcel
    # With backslashes, JSON can write the same text in several ways. So if the body has a backslash, an event may have
    # the text although the text's bytes are not in the body.
    return not isinstance(held, bytes) or b"\\" in held or all(text in held or text in path.encode() for text in texts)


def _unpacked(parcel: _Parcel) -> Events:
    *_, path, held = parcel
    return events_of(path, orjson.loads(held)) if isinstance(held, bytes) else held


def _last(records: deque[RequestRecord], limit: int | None) -> list[RequestRecord]:
    wanted: Iterable[RequestRecord] = records
    if limit is not None:
        wanted = islice(records, max(0, len(records) - limit), None)
    return list(wanted)
