"""Events that are tracked many at once: what is the same for all of them is done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Final, TypeAlias

from retailrocket_async._errors import (
    BufferFullError,
    ClientClosedError,
    EventValidationError,
    RetailRocketError,
)
from retailrocket_async._receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from retailrocket_async._delivery.intake import Intake
    from retailrocket_async._events.codec import Codec
    from retailrocket_async._events.models import Event
    from retailrocket_async._spool.dispatcher import SpoolIntake

_ON_DISK: Final = 500
"""Events that are written to a spool at once."""

_AT_ONCE: Final = 250
"""Envelopes that are dealt with before others may run: a millisecond or two."""


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
    group: list[tuple[str, bytes]] = []

    async def write() -> None:
        receipts.extend(await intake.accept_many(group))
        group.clear()

    async def take(event: Event) -> None:
        event_or_receipt = chosen(event)
        if isinstance(event_or_receipt, Receipt):
            await write()
            receipts.append(event_or_receipt)
            return
        group.append((event_or_receipt.event_name, encoded(event_or_receipt)))
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
        part = envelopes[start : start + _AT_ONCE]
        read = _examined(part, codec, allow_custom=allow_custom, most_bytes=most_bytes)
        receipts = intake.accept_group([each for each in read if type(each) is tuple])
        if receipts is not None:
            results += receipts if len(receipts) == len(read) else _in_their_places(read, receipts)
        else:
            for each in read:
                try:
                    if isinstance(each, tuple):
                        results.append(await track(codec.decode(each[2], allow_custom=allow_custom)))
                    else:
                        results.append(each)
                except (BufferFullError, ClientClosedError):
                    # What is accepted is told of; who asks again for the rest hears the error.
                    if not results:
                        raise
                    return results
        await asyncio.sleep(0)
    return results


async def track_envelopes_on_disk(
    envelopes: Sequence[bytes], intake: SpoolIntake, codec: Codec, *, allow_custom: bool, most_bytes: int
) -> list[Receipt | EventValidationError]:
    """Put the events that envelopes describe in a spool; the arguments are those of `track_envelopes`."""
    results: list[Receipt | EventValidationError] = []
    for start in range(0, len(envelopes), _ON_DISK):
        read: list[_Examined] = []
        for part in range(start, min(start + _ON_DISK, len(envelopes)), _AT_ONCE):
            some = envelopes[part : min(part + _AT_ONCE, start + _ON_DISK)]
            read += _examined(some, codec, allow_custom=allow_custom, most_bytes=most_bytes)
            await asyncio.sleep(0)
        error: RetailRocketError | None
        try:
            receipts, error = await intake.accept_group(
                [(each[0], each[2]) for each in read if isinstance(each, tuple)]
            )
        except ClientClosedError as closed:
            receipts, error = [], closed
        results += _in_their_places(read, receipts)
        if error is not None:
            # What is accepted is returned; a call with the rest raises the error.
            if not receipts and len(results) == sum(isinstance(each, EventValidationError) for each in results):
                raise error
            return results
    return results


_Examined: TypeAlias = "tuple[str, str, bytes] | EventValidationError"


def _examined(envelopes: Sequence[bytes], codec: Codec, *, allow_custom: bool, most_bytes: int) -> list[_Examined]:
    """Return for each envelope its event's name, its visitor and what to send, or what is wrong with it."""
    read: list[_Examined] = []
    examined = codec.examined
    for data in envelopes:
        try:
            found = examined(data, allow_custom=allow_custom)
        except EventValidationError as error:
            read.append(error)
            continue
        if len(found[2]) > most_bytes:
            rule = f"must be at most {most_bytes + 2} bytes of JSON (Batching.max_bytes)"
            read.append(EventValidationError(found[0], "", rule, len(found[2])))
        else:
            read.append(found)
    return read


def _in_their_places(
    read: Sequence[_Examined], receipts: Iterable[Receipt]
) -> Iterator[Receipt | EventValidationError]:
    """Yield the receipts of what was read, and the errors between them, up to the first event without a receipt."""
    taken = iter(receipts)
    for each in read:
        if isinstance(each, tuple):
            receipt = next(taken, None)
            if receipt is None:
                # From here on nothing was accepted.
                return
            yield receipt
        else:
            yield each
