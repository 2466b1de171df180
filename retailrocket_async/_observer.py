"""Lets an observer, an object of the user, follow every request of a client and every outcome of its events.

::

    track ----> tracked()            returns a mark (any object), which is stored with the event
    request --> request_began()      gets the marks of the events in the request, each mark once
            `-> request_ended()
    outcome --> settled()

A client without an observer calls none of these methods.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context, ContextVar
from typing import Any, Final

import attrs

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._fate import Share, marks_in
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._outcome import Outcome
from retailrocket_async._receipt import Receipt
from retailrocket_async._stats import Stats


@attrs.frozen(kw_only=True)
class ObservedClient:
    """The client that an observer belongs to.

    Attributes:
        partner_id: the shop's public id.
        base_url: the base URL of the client's requests; the base URL does not contain the key.
        stats: a function that returns the client's counters, as `AsyncTrackingClient.stats` does. The result is None if
            the client no longer exists, or if this object was unpickled.
    """

    partner_id: str
    base_url: str
    stats: Callable[[], Stats | None] = attrs.field(eq=False)


@attrs.frozen(kw_only=True)
class ObservedRequest:
    """A request that is about to be sent.

    Attributes:
        path: the endpoint relative to the base URL: ``"visitorEvents"``, or the name of an event that is sent alone.
        attempt: 1 for the first request with these events, 2 for the first retry, and so on.
        events: how many events the request contains.
        size: the size of the body in bytes.
        direct: whether a call of `send` or `send_batch` waits for this request. If so, the observer's methods run in a
            copy of that call's context, otherwise in an empty context.
        tracked: the marks that `Observer.tracked` returned for the events, in order, each mark once and without None.
            There is no mark for events that were read from a spool or tracked as envelopes. The mark may also be
            missing if an event waited for room in the buffer and was then sent immediately.
    """

    path: str
    attempt: int
    events: int
    size: int
    direct: bool
    tracked: tuple[object, ...]


class Observer:
    """Base class of observers: the client calls the methods below, which do nothing unless a subclass overrides them.

    The methods are called in the client's event loop, except `tracked`, which is called in the caller's thread. The
    methods must be quick, because the client waits for them. If a method raises an error, the client counts the error
    (`Stats.hook_errors`), logs the first error, and continues. Use each observer for one client only.

    Attributes:
        origin: a context variable with a default value; default None. Set `origin` if the result of `tracked`
            depends on this variable only. If the value of the variable is the same object for two events in a row, the
            second event may then get the mark of the first event without a call of `tracked`, which is faster.
    """

    origin: ContextVar[Any] | None = None

    def opened(self, client: ObservedClient) -> None:
        """Handle the creation of the client; the client's constructor calls this before any other method."""

    def tracked(self) -> object:
        """Return a mark to store with an event that is being tracked, e.g. the current span; None for no mark.

        Called in the context of the code that tracks the event: for every event, or less often if `origin` is set.
        Return the same object for the same span, because repeated marks are recognised by identity.
        """
        return None

    def request_began(self, request: ObservedRequest) -> object:  # noqa: ARG002 - for subclasses
        """Handle the start of a request; return any object, which is passed to `request_ended`.

        Called in the task that makes the request, right before the request is sent. A context variable that this method
        sets stays set until `request_ended` has been called, and is not visible to other requests.
        """
        return None

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Handle the end of a request.

        Args:
            begun: the result of `request_began`.
            status: the HTTP status; None if no answer arrived.
            failure: why no answer arrived, e.g. ``"timeout"`` or ``"cancelled"``; None if an answer arrived.
        """

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Handle the outcome of one or more events that got the same outcome at the same time.

        Called in an empty context; for `send` and `send_batch`, in a copy of the caller's context.

        Args:
            names: the number of events by event name, as the API spells the name.
            outcome: the outcome of these events.
        """


_NOWHERE: Final = object()


class Watch:
    """Calls the methods of a user's observer, and catches the errors that these methods raise.

    Args:
        observer: the user's observer.
        failed: called with the text ``"observer"`` and the error if a method of the observer raises.

    Attributes:
        marks: whether the observer overrides `tracked`.
        origin: a function that returns the current value of the context variable `Observer.origin`. If there is no such
            variable, the function returns a new object each time, so `tracked` is called for every event.
        before: the value of `origin` for the previous event.
        kept: the mark of the previous event.

    Raises:
        ConfigurationError: `Observer.origin` is not a context variable, or has no default.
    """

    def __init__(self, observer: Observer, failed: Callable[[str, BaseException], None]) -> None:
        self._observer = observer
        self._tracked = observer.tracked
        # If the observer does not override `tracked`, no event has a mark, so `tracked` need not be called.
        self.marks = type(observer).tracked is not Observer.tracked
        # Without `Observer.origin`, the function is the class `object`: each call returns a new object, so no two
        # events seem to have the same origin.
        self.origin: Callable[[], object] = object if observer.origin is None else _getter_of(observer.origin)
        self.before: object = _NOWHERE
        self.kept: object = None
        self._kept_any = False
        self._failed = failed

    def opened(self, client: ObservedClient) -> None:
        """Call `Observer.opened`; an error is raised to the caller, which is the client's constructor."""
        self._observer.opened(client)

    def mark(self) -> object:
        """Call `Observer.tracked` in any thread; return the mark, which must be passed to `note_mark`."""
        try:
            return self._tracked()
        except BaseException as error:  # a user's observer
            if is_interrupt(error):
                raise
            return _Raised(error)

    def note(self, receipt: Receipt) -> None:
        """Store the mark of an event in the receipt; called in the event loop, in the caller's task."""
        origin = self.origin()
        if origin is not self.before:
            try:
                self.kept = self._tracked()
            except BaseException as error:  # noqa: BLE001 - a user's observer
                self._raised(error)
                return
            self.before = origin
            self._kept_any |= self.kept is not None
        try:
            receipt.mark = self.kept
        except RecursionError:
            # Too little of the stack is left to store the mark. The event is accepted all the same.
            return

    def note_mark(self, receipt: Receipt, mark: object) -> None:
        """Store in the receipt a mark that the method `mark` returned in another thread; called in the event loop."""
        if isinstance(mark, _Raised):
            self._failed("observer", mark.error)
        else:
            receipt.mark = mark
            self._kept_any |= mark is not None

    def began(self, path: str, *, attempt: int, events: int, size: int, shares: Sequence[Share] | None) -> object:
        """Call `Observer.request_began`; return the result, which must be passed to `ended`.

        `shares` has the fates and places of the events in the request; None for a direct send.
        """
        if shares is not None:
            # Forget the last event's context and mark. Otherwise both would stay in memory until the next event is
            # tracked.
            self.before, self.kept = _NOWHERE, None
        # Look for marks only if any event has ever had a mark. No event has a mark if, e.g., no span is sampled.
        marks = _marks(shares or ()) if self._kept_any else ()
        request = ObservedRequest(
            path=path, attempt=attempt, events=events, size=size, direct=shares is None, tracked=marks
        )
        try:
            return self._observer.request_began(request)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)
            return _Raised(error)

    def ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Call `Observer.request_ended`, unless `Observer.request_began` raised an error."""
        if isinstance(begun, _Raised):
            return
        try:
            self._observer.request_ended(begun, status=status, failure=failure)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)

    def settled(self, names: Iterable[str], outcome: Outcome) -> None:
        """Call `Observer.settled` with the number of events by name, and with their outcome."""
        try:
            self._observer.settled(Counter(names), outcome)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)

    def _raised(self, error: BaseException) -> None:
        """Count and log an error of the observer, or raise the error again if it is the user's Ctrl-C."""
        if is_interrupt(error):
            raise error
        try:
            self._failed("observer", error)
        except RecursionError:
            # Too little of the stack is left to count and log the error. The event is accepted all the same.
            return


def _marks(shares: Sequence[Share]) -> tuple[object, ...]:
    """Return the marks of the events in shares, each object once and without None."""
    last = None
    # Events with the same mark usually follow each other. So the fastest way is to skip each mark that is the same
    # object as the mark before, and to remove the few remaining duplicates below.
    kept = [last := mark for mark in marks_in(shares) if mark is not last]
    marks = {id(mark): mark for mark in kept}
    marks.pop(id(None), None)
    return tuple(marks.values())


def _getter_of(origin: ContextVar[Any]) -> Callable[[], object]:
    """Check `Observer.origin`, and return the function that reads the variable."""
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
