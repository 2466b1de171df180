"""For whoever wants to see more than `stats` tells: every request, and what became of the events.

::

    track ----> tracked()            what it returns is kept with the event
    request --> request_began()      is given it for every event on its way, once each
            `-> request_ended()
    outcome --> settled()

Nothing is called where there is no observer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, ContextVar
from typing import Any, Final

import attrs

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._outcome import Outcome
from retailrocket_async._receipt import Receipt
from retailrocket_async._stats import Stats


@attrs.frozen(kw_only=True)
class ObservedClient:
    """The client that is observed.

    Attributes:
        partner_id: the shop's public id.
        base_url: where its requests go; the key is not in it.
        stats: as `AsyncTrackingClient.stats`; None where the client is gone, or in a copy from another process.
    """

    partner_id: str
    base_url: str
    stats: Callable[[], Stats | None] = attrs.field(eq=False)


@attrs.frozen(kw_only=True)
class ObservedRequest:
    """A request that is about to be made.

    Attributes:
        path: relative to the base URL, e.g. ``"visitorEvents"``; for an event's own endpoint its name.
        attempt: 1, or more for a retry of the same events.
        events: how many are in it.
        size: bytes of its body.
        direct: whether a call of `send` or `send_batch` waits for it; the observer then sees a copy of that call's
            context, else an empty one.
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

    Attributes:
        origin: a context variable with a default; None, the default, for no such thing. Where what `tracked` returns
            depends on nothing else than its value, a client asks `tracked` only when that is another object than for
            the event before, which spares a call for nearly every event.
    """

    origin: ContextVar[Any] | None = None

    def opened(self, client: ObservedClient) -> None:
        """Take note of the client; called by its constructor, before anything else."""

    def tracked(self) -> object:
        """Return what is to be kept with an event that is being tracked, e.g. the current span; None for nothing.

        Called for every event, at its caller's line, unless `origin` spares the call. Return the same object for the
        same thing: a request is given each object once.
        """
        return None

    def request_began(self, request: ObservedRequest) -> object:  # noqa: ARG002 - for whoever overrides it
        """Take note of a request, right before it goes out; what this returns is given to `request_ended`.

        Called in the task that makes the request. A context variable that is set here is set while the request is
        made, and when `request_ended` is called; no other request sees it.
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
        """Take note of events that have their outcome together: how many there are by their names on the wire.

        Sees an empty context, or for a direct send a copy of its caller's.
        """


_NOWHERE: Final = object()


class Watch:
    """Asks an observer, and lets nothing that it raises out.

    Args:
        observer: the user's.
        failed: told the name of what raised, and what it raised.

    Attributes:
        marks: whether the observer keeps anything with events.
        origin: returns another object where the observer may keep something else with an event than before.
        before: what that was, and `kept` what was kept then.

    Raises:
        ConfigurationError: `Observer.origin` is no context variable, or one without a default.
    """

    def __init__(self, observer: Observer, failed: Callable[[str, BaseException], None]) -> None:
        self._observer = observer
        self._tracked = observer.tracked
        # One that keeps nothing with events need not be asked for each.
        self.marks = type(observer).tracked is not Observer.tracked
        # Without a variable an object that is new each time.
        self.origin: Callable[[], object] = object if observer.origin is None else _getter_of(observer.origin)
        self.before: object = _NOWHERE
        self.kept: object = None
        self._kept_any = False
        self._failed = failed

    def opened(self, client: ObservedClient) -> None:
        """Tell of the client; what this raises is a wrong configuration, and is raised."""
        self._observer.opened(client)

    def mark(self) -> object:
        """Return what is to be kept with an event, in whatever thread."""
        try:
            return self._tracked()
        except BaseException as error:  # a user's observer
            if is_interrupt(error):
                raise
            return _Raised(error)

    def note(self, receipt: Receipt) -> None:
        """Keep with an event what the observer wants, at the line of its caller, in the client's event loop."""
        origin = self.origin()
        if origin is not self.before:
            try:
                self.kept = self._tracked()
            except BaseException as error:  # noqa: BLE001 - a user's observer
                self._raised(error)
                return
            self.before = origin
            self._kept_any |= self.kept is not None
        receipt.mark = self.kept

    def note_mark(self, receipt: Receipt, mark: object) -> None:
        """Keep with an event what `mark` returned, in the client's event loop."""
        if isinstance(mark, _Raised):
            self._failed("observer", mark.error)
        else:
            receipt.mark = mark
            self._kept_any |= mark is not None

    def began(self, path: str, *, attempt: int, events: int, size: int, receipts: Iterable[Receipt] | None) -> object:
        """Tell of a request; `receipts` are None for a direct one. Return what the observer wants to get back."""
        # Where nothing was ever kept, as no page is sampled, say, there is nothing to look for.
        if receipts is not None:
            # The last visitor is asked for once more, and not kept until another one comes.
            self.before, self.kept = _NOWHERE, None
        marks = _marks(receipts or ()) if self._kept_any else ()
        request = ObservedRequest(
            path=path, attempt=attempt, events=events, size=size, direct=receipts is None, tracked=marks
        )
        try:
            return self._observer.request_began(request)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)
            return _Raised(error)

    def ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Tell of a request's end, unless the observer failed at its beginning."""
        if isinstance(begun, _Raised):
            return
        try:
            self._observer.request_ended(begun, status=status, failure=failure)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)

    def settled(self, names: Iterable[str], outcome: Outcome) -> None:
        """Tell what became of events."""
        try:
            self._observer.settled(Counter(names), outcome)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)

    def _raised(self, error: BaseException) -> None:
        """Count what the observer raised; raise the user's Ctrl-C again."""
        if is_interrupt(error):
            raise error
        try:
            self._failed("observer", error)
        except RecursionError:
            # The caller has hardly any stack left, and its event is accepted all the same.
            return


def _marks(receipts: Iterable[Receipt]) -> tuple[object, ...]:
    """Return what was kept with events, each object once."""
    last = None
    try:
        # Events of one origin stand side by side, most of them: looked at one by one, which is quicker than what is
        # built in, and the few that differ once more.
        kept = [last := receipt.mark for receipt in receipts if receipt.mark is not last]
    except AttributeError:
        # With some events nothing was kept, not even None.
        kept = [getattr(receipt, "mark", None) for receipt in receipts]
    marks = {id(mark): mark for mark in kept}
    marks.pop(id(None), None)
    return tuple(marks.values())


def _getter_of(origin: ContextVar[Any]) -> Callable[[], object]:
    """Return what reads the variable."""
    if not isinstance(origin, ContextVar):
        raise ConfigurationError(f"Observer.origin must be a ContextVar or None, not {type(origin).__name__}")
    try:
        Context().run(origin.get)
    except LookupError:
        raise ConfigurationError("Observer.origin must be a ContextVar with a default") from None
    return origin.get


@attrs.frozen
class _Raised:
    error: BaseException
