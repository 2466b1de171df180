"""For whoever wants to see more than `stats` tells: every request, and what became of the events.

::

    track ----> tracked()            what it returns is kept with the event
    request --> request_began()      is given it for every event on its way, once each
            `-> request_ended()
    outcome --> settled()

Nothing is called where there is no observer.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import TYPE_CHECKING

import attrs

_mark_of = operator.attrgetter("mark")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from retailrocket_async._outcome import Outcome, Receipt
    from retailrocket_async._report import Stats


@attrs.frozen(kw_only=True)
class ObservedClient:
    """The client that is observed.

    Attributes:
        partner_id: the shop's public id.
        base_url: where its requests go; the key is not in it.
        stats: as `AsyncTrackingClient.stats`; None where the client is gone.
    """

    partner_id: str
    base_url: str
    stats: Callable[[], Stats | None]


@attrs.frozen(kw_only=True)
class ObservedRequest:
    """A request that is about to be made.

    Attributes:
        path: relative to the base URL, e.g. ``"visitorEvents"``; for an event's own endpoint its name.
        attempt: 1, or more for a retry of the same events.
        events: how many are in it.
        size: bytes of its body.
        direct: whether a call of `send` or `send_batch` waits for it; it runs in that call's context.
        tracked: what `Observer.tracked` returned for its events, each once, in order, without None. Events that were
            read from a spool, came as envelopes, or had to wait for room and left at once, may be missing.
    """

    path: str
    attempt: int
    events: int
    size: int
    direct: bool
    tracked: tuple[object, ...]


class Observer:
    """Sees what a client does; subclass it and override what you want to see. Here every method does nothing.

    The methods are called in the client's event loop, but for `tracked`, which is called where the event comes from.
    They must be quick, as they hold up everything else. What they raise is counted (`Stats.hook_errors`) and logged
    once, and changes nothing. An observer belongs to one client.
    """

    def opened(self, client: ObservedClient) -> None:
        """Take note of the client; called by its constructor, before anything else."""

    def tracked(self) -> object:
        """Return what is to be kept with an event that is being tracked, e.g. the current span; None for nothing.

        Called for every event, at its caller's line. Return the same object for the same thing: a request is given each
        object once.
        """
        return None

    def request_began(self, request: ObservedRequest) -> object:  # noqa: ARG002 - for whoever overrides it
        """Take note of a request, right before it goes out; what this returns is given to `request_ended`.

        Called in the task that makes the request, as `request_ended` is, so that a context variable which is set here
        holds for the request.
        """
        return None

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Take note of a request's end.

        Args:
            begun: what `request_began` returned.
            status: the HTTP status; None where there was no answer.
            failure: why there was none, e.g. ``"timeout"`` or ``"cancelled"``; None where there was one.
        """

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Take note of events that have their outcome together: how many there are by their names on the wire."""


class Watch:
    """Asks an observer, and lets nothing that it raises out.

    Args:
        observer: the user's.
        failed: told the name of what raised, and what it raised.

    Attributes:
        tracked: what the observer wants to keep with an event; None where it keeps nothing with any.
    """

    def __init__(self, observer: Observer, failed: Callable[[str, Exception], None]) -> None:
        self._observer = observer
        self._tracked = observer.tracked
        # One that keeps nothing with events need not be asked for each.
        self.tracked = observer.tracked if type(observer).tracked is not Observer.tracked else None
        self._failed = failed

    def opened(self, client: ObservedClient) -> None:
        """Tell of the client; what this raises is a wrong configuration, and is raised."""
        self._observer.opened(client)

    def mark(self) -> object:
        """Return what is to be kept with an event, in whatever thread."""
        try:
            return self._tracked()
        except Exception as error:  # noqa: BLE001 - a user's observer
            return _Raised(error)

    def raised(self, error: Exception) -> None:
        """Tell that `tracked` raised."""
        self._failed("observer", error)

    def note(self, receipt: Receipt) -> None:
        """Keep with an event what the observer wants, at the line of its caller."""
        try:
            receipt.mark = self._tracked()
        except Exception as error:  # noqa: BLE001 - a user's observer
            self._failed("observer", error)

    def note_mark(self, receipt: Receipt, mark: object) -> None:
        """Keep with an event what `mark` returned, in the client's event loop."""
        if isinstance(mark, _Raised):
            self._failed("observer", mark.error)
        else:
            receipt.mark = mark

    def began(self, path: str, *, attempt: int, events: int, size: int, receipts: Iterable[Receipt] | None) -> object:
        """Tell of a request; `receipts` are None for a direct one. Return what the observer wants to get back."""
        marks = _marks(receipts or ())
        request = ObservedRequest(
            path=path, attempt=attempt, events=events, size=size, direct=receipts is None, tracked=tuple(marks.values())
        )
        try:
            return self._observer.request_began(request)
        except Exception as error:  # noqa: BLE001 - a user's observer
            self._failed("observer", error)
            return _Raised(error)

    def ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Tell of a request's end, unless the observer failed at its beginning."""
        if isinstance(begun, _Raised):
            return
        try:
            self._observer.request_ended(begun, status=status, failure=failure)
        except Exception as error:  # noqa: BLE001 - a user's observer
            self._failed("observer", error)

    def settled(self, names: Iterable[str], outcome: Outcome) -> None:
        """Tell what became of events."""
        try:
            self._observer.settled(Counter(names), outcome)
        except Exception as error:  # noqa: BLE001 - a user's observer
            self._failed("observer", error)


def _marks(receipts: Iterable[Receipt]) -> dict[int, object]:
    """Return what was kept with events, each object once."""
    try:
        kept = list(map(_mark_of, receipts))
    except AttributeError:
        # Of some events nothing was, not even None.
        kept = [getattr(receipt, "mark", None) for receipt in receipts]
    marks: dict[int, object] = dict(zip(map(id, kept), kept, strict=True))
    marks.pop(id(None), None)
    return marks


@attrs.frozen
class _Raised:
    error: Exception
