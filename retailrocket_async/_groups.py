"""Events that are tracked many at once: what is the same for all of them is done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import BufferFullError, ClientClosedError, EventValidationError
from retailrocket_async._events import CustomEvent
from retailrocket_async._outcome import Receipt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from retailrocket_async._events import Event
    from retailrocket_async._intake import Intake
    from retailrocket_async._spooled import SpoolIntake
    from retailrocket_async._wire import Codec

_ON_DISK: Final = 500
"""Events that are written to a spool at once."""

_AT_ONCE: Final = 100
"""Envelopes that are dealt with before others may run: a millisecond."""


async def track_on_disk(
    events: Iterable[Event] | AsyncIterable[Event],
    intake: SpoolIntake,
    *,
    chosen: Callable[[Event], Event | Receipt],
    encoded: Callable[[Event], bytes],
) -> list[Receipt]:
    """Put events in a spool, many at once: each by itself would wait for the disk.

    Args:
        events: what to track.
        intake: takes them.
        chosen: what `before_send` makes of an event: the event to send, or the receipt of one that is dropped.
        encoded: the envelope of an event, if it is one.
    """
    receipts: list[Receipt] = []
    group: list[tuple[Event, bytes]] = []

    async def write() -> None:
        receipts.extend(await intake.accept_many(group))
        group.clear()

    async def take(event: Event) -> None:
        event_or_receipt = chosen(event)
        if isinstance(event_or_receipt, Receipt):
            await write()
            receipts.append(event_or_receipt)
            return
        group.append((event_or_receipt, encoded(event_or_receipt)))
        if len(group) == _ON_DISK:
            await write()

    try:
        if isinstance(events, AsyncIterable):
            async for event in events:
                await take(event)
        else:
            for event in events:
                await take(event)
    except EventValidationError:
        # Those before it are accepted.
        await write()
        raise
    await write()
    return receipts


async def track_envelopes(  # noqa: PLR0913 - what one event after the other would be given, too
    envelopes: Sequence[bytes],
    intake: Intake,
    codec: Codec,
    *,
    allow_custom: bool,
    most_bytes: int,
    track: Callable[[Event], Awaitable[Receipt]],
) -> list[Receipt | EventValidationError]:
    """Put the events that envelopes describe in the buffer, in order.

    Args:
        envelopes: JSON.
        intake: takes them.
        codec: reads them.
        allow_custom: as in `Codec.decode`.
        most_bytes: bytes of one event at most.
        track: takes one event, where there is no room for many.
    """
    results: list[Receipt | EventValidationError] = []
    for start in range(0, len(envelopes), _AT_ONCE):
        read: list[tuple[Event, bytes] | EventValidationError] = []
        for data in envelopes[start : start + _AT_ONCE]:
            try:
                event, envelope = codec.examined(data, allow_custom=allow_custom)
                if len(envelope) > most_bytes:
                    read.append(_too_large(event, envelope, most_bytes))
                else:
                    read.append((event, envelope))
            except EventValidationError as error:
                read.append(error)
        group = [(_name(each[0]), visitor_of(each[0]), each[1]) for each in read if isinstance(each, tuple)]
        receipts = intake.accept_group(group)
        if receipts is not None:
            taken = iter(receipts)
            results += [next(taken) if isinstance(each, tuple) else each for each in read]
        else:
            for each in read:
                try:
                    results.append(await track(each[0]) if isinstance(each, tuple) else each)
                except (BufferFullError, ClientClosedError):
                    # What is accepted is told of; who asks again for the rest hears the error.
                    if not results:
                        raise
                    return results
        await asyncio.sleep(0)
    return results


def _too_large(event: Event, envelope: bytes, most_bytes: int) -> EventValidationError:
    rule = f"must be at most {most_bytes + 2} bytes of JSON (Batching.max_bytes)"
    return EventValidationError(event.event_name, "", rule, len(envelope))


def _name(event: Event) -> str:
    # An event that is not documented knows its name itself.
    return event.wire_name or event.event_name


def visitor_of(event: Event) -> str:
    """Return whose event it is, ``""`` where it does not say."""
    if isinstance(event, CustomEvent):
        return str(event.fields.get("sessionExternalId", ""))
    return str(getattr(event, "session_external_id", ""))
