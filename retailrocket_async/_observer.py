"""An observer sees every request of a client, and the outcomes of its events.

::

    track ----> tracked()            returns a mark, which is kept with the event
    request --> request_began()      gets the marks of its events, each mark once
            `-> request_ended()
    outcome --> settled()

Without an observer none of this runs.
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
    """The client that an observer belongs to.

    Attributes:
        partner_id: the shop's public id.
        base_url: where its requests go, without the key.
        stats: as `AsyncTrackingClient.stats`, but returns None after the client was collected, or if this object was
            unpickled.
    """

    partner_id: str
    base_url: str
    stats: Callable[[], Stats | None] = attrs.field(eq=False)


@attrs.frozen(kw_only=True)
class ObservedRequest:
    """A request that is about to be made.

    Attributes:
        path: the endpoint relative to the base URL: ``"visitorEvents"``, or the name of the event of `send`.
        attempt: 1, or more for a retry of the same events.
        events: how many events are in it.
        size: bytes of its body.
        direct: whether a call of `send` or `send_batch` waits for it; the observer then sees a copy of that call's
            context, otherwise an empty context.
        tracked: the marks that `Observer.tracked` returned for its events, each once, in order, without None. The marks
            of some events may be missing: those read from a spool, those tracked as envelopes, and those that waited
            for room and were sent immediately.
    """

    path: str
    attempt: int
    events: int
    size: int
    direct: bool
    tracked: tuple[object, ...]


class Observer:
    """Is called for what a client does; subclass it and override methods. The methods of this class do nothing.

    The methods are called in the client's event loop, except `tracked`, which is called in the caller's thread. They
    must be quick, as the client waits for them. An error that they raise is counted (`Stats.hook_errors`), logged once,
    and has no other effect. An observer belongs to one client.

    Attributes:
        origin: a context variable with a default, if the result of `tracked` depends on its value alone; default None.
            With it the client calls `tracked` only if the value is another object than for the event before, which
            saves the call for nearly every event.
    """

    origin: ContextVar[Any] | None = None

    def opened(self, client: ObservedClient) -> None:
        """Handle the start of the client; its constructor calls this before any other method."""

    def tracked(self) -> object:
        """Return a mark to keep with an event that is being tracked, e.g. the current span; None for no mark.

        Called for every event, in its caller's context, unless `origin` saves the call. Return the same object for the
        same span, as a request gets each object once.
        """
        return None

    def request_began(self, request: ObservedRequest) -> object:  # noqa: ARG002 - for subclasses
        """Handle the start of a request; the result is passed to `request_ended`.

        Called in the task that makes the request, right before it is sent. A context variable that is set here stays
        set while the request is made and `request_ended` is called; no other request sees it.
        """
        return None

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Handle the end of a request.

        Args:
            begun: the result of `request_began`.
            status: the HTTP status; None if there was no answer.
            failure: why there was no answer, e.g. ``"timeout"`` or ``"cancelled"``; None if there was one.
        """

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Handle the outcome of events that got it together.

        Called in an empty context, or for a direct send in a copy of its caller's context.

        Args:
            names: how many events there are, by their names on the wire.
            outcome: their outcome.
        """


_NOWHERE: Final = object()


class Watch:
    """Calls an observer, and catches its errors.

    Args:
        observer: the user's.
        failed: called with the name of the hook and its error.

    Attributes:
        marks: whether the observer overrides `tracked`.
        origin: returns the current value of `Observer.origin`; a new object each time if there is no such variable.
        before: the value of `origin` for the last event, and `kept` the mark of that event.

    Raises:
        ConfigurationError: `Observer.origin` is not a context variable, or has no default.
    """

    def __init__(self, observer: Observer, failed: Callable[[str, BaseException], None]) -> None:
        self._observer = observer
        self._tracked = observer.tracked
        # An observer without marks need not be called for each event.
        self.marks = type(observer).tracked is not Observer.tracked
        # `object` returns a new object each time.
        self.origin: Callable[[], object] = object if observer.origin is None else _getter_of(observer.origin)
        self.before: object = _NOWHERE
        self.kept: object = None
        self._kept_any = False
        self._failed = failed

    def opened(self, client: ObservedClient) -> None:
        """Call `Observer.opened`; its errors are raised, as the constructor of the client waits for it."""
        self._observer.opened(client)

    def mark(self) -> object:
        """Return the mark of an event; may be called in any thread."""
        try:
            return self._tracked()
        except BaseException as error:  # a user's observer
            if is_interrupt(error):
                raise
            return _Raised(error)

    def note(self, receipt: Receipt) -> None:
        """Get the mark of an event, and keep it with the receipt; called in the caller's task in the event loop."""
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
        """Keep with the receipt the mark that `mark` has returned in another thread; called in the event loop."""
        if isinstance(mark, _Raised):
            self._failed("observer", mark.error)
        else:
            receipt.mark = mark
            self._kept_any |= mark is not None

    def began(self, path: str, *, attempt: int, events: int, size: int, receipts: Iterable[Receipt] | None) -> object:
        """Call `Observer.request_began`, and return its result for `ended`; `receipts` is None for a direct send."""
        if receipts is not None:
            # So the context of the last event is not kept alive until the next one comes.
            self.before, self.kept = _NOWHERE, None
        # Searched only if there was ever a mark: without a sampled span, for example, there is none.
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
        """Call `Observer.request_ended`, unless `request_began` has failed."""
        if isinstance(begun, _Raised):
            return
        try:
            self._observer.request_ended(begun, status=status, failure=failure)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)

    def settled(self, names: Iterable[str], outcome: Outcome) -> None:
        """Call `Observer.settled`."""
        try:
            self._observer.settled(Counter(names), outcome)
        except BaseException as error:  # noqa: BLE001 - a user's observer
            self._raised(error)

    def _raised(self, error: BaseException) -> None:
        """Count an error of the observer; raise the user's Ctrl-C again."""
        if is_interrupt(error):
            raise error
        try:
            self._failed("observer", error)
        except RecursionError:
            # The caller has hardly any stack left. Its event is accepted all the same.
            return


def _marks(receipts: Iterable[Receipt]) -> tuple[object, ...]:
    """Return the marks of events, each object once."""
    last = None
    try:
        # Most events with the same mark stand side by side. So a loop that drops repeated marks is faster than built-in
        # functions over all of them; the few marks that remain are made unique below.
        kept = [last := receipt.mark for receipt in receipts if receipt.mark is not last]
    except AttributeError:
        # Some receipts have no attribute `mark`.
        kept = [getattr(receipt, "mark", None) for receipt in receipts]
    marks = {id(mark): mark for mark in kept}
    marks.pop(id(None), None)
    return tuple(marks.values())


def _getter_of(origin: ContextVar[Any]) -> Callable[[], object]:
    """Return the function that reads the variable."""
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
