"""Prepares events in the thread of their caller: calls `before_send`, encodes the events and checks their size."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from retailrocket_async._errors import EventValidationError, error_for
from retailrocket_async._events.codec import BATCH_PATH, join, visitor_of
from retailrocket_async._events.envelopes import BRACKETS, only_alone, too_large
from retailrocket_async._events.models import Event
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._outcome import Dropped
from retailrocket_async._receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from retailrocket_async._delivery.engine import Engine
    from retailrocket_async._events.codec import Codec
    from retailrocket_async._observer import Watch
    from retailrocket_async._queue.options import Batching


class DirectRequest(NamedTuple):
    """A request of `send` or `send_batch`, which does not wait in the queue.

    Attributes:
        path: the endpoint, relative to the base URL.
        body: the JSON to send.
        names: the names of the events in the request.
        visitors: the session ids of the events' visitors; ``""`` if an event has no session id.
    """

    path: str
    body: bytes
    names: list[str]
    visitors: list[str]


class Preparation:
    """Prepares a caller's event for the engine: calls `before_send`, encodes the event and checks its size.

    Args:
        engine: counts the errors of `before_send` and the events that `before_send` drops.
        codec: encodes events.
        batching: limits the size of an event and of a direct request.
        before_send: the user's function, or None.

    Attributes:
        max_bytes: the largest size of an encoded event in bytes.
    """

    def __init__(
        self, engine: Engine, codec: Codec, batching: Batching, before_send: Callable[[Event], Event | None] | None
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._encode = codec.encode
        self._batching = batching
        self.max_bytes = batching.max_bytes - BRACKETS
        self._before_send = before_send

    def chosen(self, event: Event, *, report: bool = True) -> Event | Receipt:
        """Call `before_send`; return the event to send, or a receipt with the outcome if `before_send` drops the event.

        Args:
            event: the event that the caller tracks.
            report: whether to pass a dropped event to `on_outcome`; False if the caller gets an error instead.
        """
        chosen, error = self._call_before_send(event)
        if error is not None:
            self._engine.hook_failed("before_send", error)
        return self._engine.intake.refuse(event, self.encoded(event), tell=report) if chosen is None else chosen

    def encoded(self, event: Event) -> bytes:
        """Return the envelope of an event.

        Raises:
            EventValidationError: `event` is not an event of this package, or is larger than `Batching.max_bytes`.
        """
        envelope = self._encode(event)
        if len(envelope) > self.max_bytes:
            self.refuse_size(event, envelope)
        return envelope

    def refuse_size(self, event: Event, envelope: bytes) -> NoReturn:
        """Raise the error for an event that is larger than `Batching.max_bytes`."""
        raise too_large(event.event_name, len(envelope), self._batching.max_bytes)

    def prepared(self, event: Event) -> tuple[str, bytes] | Receipt:
        """Return the name and JSON of the event to send, or, if `before_send` drops it, a receipt with the outcome."""
        chosen = self.chosen(event)
        return chosen if isinstance(chosen, Receipt) else (chosen.event_name, self.encoded(chosen))

    def request_of(self, event: Event) -> DirectRequest:
        """Return the request that sends one event to its own endpoint.

        Raises:
            EventValidationError: see `encoded`.
            DroppedError: `before_send` dropped the event.
        """
        self.encoded(event)
        chosen = self.chosen(event, report=False)
        if isinstance(chosen, Receipt):
            raise error_for(Dropped(reason="before_send"))
        self.encoded(chosen)
        name = chosen.event_name
        return DirectRequest(name, self._codec.encode_bare(chosen), [name], [visitor_of(chosen)])

    def batch_request_of(self, events: Iterable[Event]) -> DirectRequest:
        """Return the request that sends events together.

        Raises:
            EventValidationError: there are no events or too many events, the batch is too large, or one of the events
                must not be sent in a batch; also the errors of `encoded`.
            DroppedError: `before_send` dropped all events.
        """
        max_events = self._batching.max_events
        # Read one event more than allowed, so a long iterable is refused without being read to its end.
        given = list(itertools.islice(events, max_events + 1))
        if not 1 <= len(given) <= max_events:
            rule = f"must hold 1 to {max_events} events (Batching.max_events); track_many takes any number"
            raise EventValidationError(BATCH_PATH, "", rule, len(given))
        for event in given:
            self.encoded(event)
        chosen = [kept for event in given if not isinstance(kept := self.chosen(event, report=False), Receipt)]
        if not chosen:
            raise error_for(Dropped(reason="before_send"))
        for event in chosen:
            if not event.batchable:
                raise only_alone(event.event_name)
        body = join(map(self.encoded, chosen))
        if len(body) > self._batching.max_bytes:
            raise too_large(BATCH_PATH, len(body), self._batching.max_bytes)
        names = [event.event_name for event in chosen]
        return DirectRequest(BATCH_PATH, body, names, list(map(visitor_of, chosen)))

    def deferred(self, event: Event, watch: Watch | None) -> Callable[[], Coroutine[Any, Any, Receipt]]:
        """Prepare an event in any thread; return a coroutine function that accepts the event in the loop.

        Args:
            event: the event that the caller tracks.
            watch: calls `Observer.tracked` in this thread; None without an observer.
        """
        chosen, error = self._call_before_send(event)
        envelope = self.encoded(event if chosen is None else chosen)
        engine = self._engine
        if chosen is not None and error is None and watch is None:
            return functools.partial(engine.intake.accept, chosen, envelope)
        mark = None if watch is None else watch.mark()

        async def accept() -> Receipt:
            if error is not None:
                engine.hook_failed("before_send", error)
            if chosen is None:
                return engine.intake.refuse(event, envelope, tell=True)
            receipt = await engine.intake.accept(chosen, envelope)
            if watch is not None:
                watch.note_mark(receipt, mark)
            return receipt

        return accept

    def _call_before_send(self, event: Event) -> tuple[Event | None, BaseException | None]:
        """Return the result and the error of `before_send`; after an error the result is the unchanged event."""
        # A value that is not an event is returned unchanged: the encoder will refuse that value.
        if self._before_send is None or not isinstance(event, Event):
            return event, None
        try:
            chosen = self._before_send(event)
            if chosen is not None and not isinstance(chosen, Event):
                raise TypeError  # noqa: TRY301 - handled like any other error of the hook
        except BaseException as error:  # the user's function may raise anything
            if is_interrupt(error):
                raise
            return event, error
        return chosen, None
