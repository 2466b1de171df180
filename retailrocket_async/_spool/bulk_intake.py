"""Accepts many events into a spool in groups, because waiting for the disk once per event is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.bulk_intake import PART
from retailrocket_async._errors import ClientClosedError, EventValidationError
from retailrocket_async._events.envelopes import merged
from retailrocket_async._receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from retailrocket_async._errors import RetailRocketError
    from retailrocket_async._events.envelopes import EnvelopeReader, Examined
    from retailrocket_async._events.models import Event
    from retailrocket_async._spool.intake import SpoolIntake

_GROUP: Final = 500
"""Largest number of events in a group."""


async def accept_many(
    events: Iterable[Event] | AsyncIterable[Event],
    intake: SpoolIntake,
    *,
    prepare: Callable[[Event], tuple[str, bytes] | Receipt],
) -> list[Receipt]:
    """Accept events in order, and return their receipts; see `Engine.accept_many`.

    Args:
        events: the events.
        intake: writes a group of events.
        prepare: called with an event; returns the event's name and envelope (JSON), or, if `before_send` drops the
            event, the event's receipt.
    """
    receipts: list[Receipt] = []
    group: list[tuple[str, bytes]] = []

    async def write() -> None:
        receipts.extend(await intake.accept_many(group))
        group.clear()

    async def take(event: Event) -> None:
        prepared = prepare(event)
        if isinstance(prepared, Receipt):
            await write()
            receipts.append(prepared)
            return
        group.append(prepared)
        if len(group) == _GROUP:
            await write()

    try:
        if isinstance(events, AsyncIterable):
            async for event in events:
                await take(event)
        else:
            for event in events:
                await take(event)
    except EventValidationError:
        # The events before the invalid event are accepted, so these events are written before the error is raised.
        await write()
        raise
    await write()
    return receipts


async def accept_envelopes(
    envelopes: Sequence[bytes], reader: EnvelopeReader, intake: SpoolIntake
) -> list[Receipt | EventValidationError]:
    """Accept the events that envelopes describe, in order; see `Engine.accept_envelopes`.

    Args:
        envelopes: the JSON of each event.
        reader: checks the envelopes.
        intake: writes a group of events.
    """
    results: list[Receipt | EventValidationError] = []
    for start in range(0, len(envelopes), _GROUP):
        group = envelopes[start : start + _GROUP]
        examined: list[Examined] = []
        for part in range(0, len(group), PART):
            examined += reader.examine(group[part : part + PART])
            await asyncio.sleep(0)
        error: RetailRocketError | None
        try:
            receipts, error = await intake.accept_group(
                [(each[0], each[2]) for each in examined if isinstance(each, tuple)]
            )
        except ClientClosedError as closed:
            receipts, error = [], closed
        results += merged(examined, receipts)
        if error is not None:
            # If any event was accepted, the caller needs the results so far, so these results are returned instead of
            # the error. If the caller passes the remaining envelopes again, that call raises the error.
            if not receipts and len(results) == sum(isinstance(each, EventValidationError) for each in results):
                raise error
            return results
    return results
