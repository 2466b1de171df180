"""Accepts many events into the buffer, each as an envelope (the JSON of one event), `PART` events at a time.

If the buffer has space for all events of a part, the part is accepted in one step; otherwise its events are accepted
one by one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import BufferFullError, ClientClosedError, EventValidationError
from retailrocket_async._events.envelopes import merged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from retailrocket_async._delivery.intake import Intake
    from retailrocket_async._events.envelopes import EnvelopeReader
    from retailrocket_async._events.models import Event
    from retailrocket_async._receipt import Receipt

    Result = Receipt | EventValidationError

PART: Final = 250
"""Number of envelopes that are accepted before other tasks may run; accepting 250 events takes a millisecond or two."""


async def accept_envelopes(
    envelopes: Sequence[bytes], reader: EnvelopeReader, intake: Intake, *, track: Callable[[Event], Awaitable[Receipt]]
) -> list[Result]:
    """Accept the events that envelopes describe, in order; see `Engine.accept_envelopes`.

    Args:
        envelopes: the JSON of each event.
        reader: checks and decodes the envelopes.
        intake: accepts all events of a part at once, if the buffer has space for all of them.
        track: accepts one event; used if the buffer has no space for the whole part.
    """
    results: list[Result] = []
    for start in range(0, len(envelopes), PART):
        part = envelopes[start : start + PART]
        examined = reader.examine(part)
        receipts = intake.accept_group([each for each in examined if type(each) is tuple])
        if receipts is not None:
            results += receipts if len(receipts) == len(examined) else merged(examined, receipts)
        else:
            rest = [each[2] if isinstance(each, tuple) else each for each in examined]
            if not await track_one_by_one(rest, reader, results, track=track):
                break
        await asyncio.sleep(0)
    return results


async def track_one_by_one(
    envelopes: Sequence[bytes | EventValidationError],
    reader: EnvelopeReader,
    results: list[Result],
    *,
    track: Callable[[Event], Awaitable[Receipt]],
) -> bool:
    """Track the events of envelopes one after the other, and append the result of each to `results`.

    Args:
        envelopes: the JSON of each event; if an envelope was already found invalid, its error stands in its place.
        reader: decodes the envelopes.
        results: the results of all earlier envelopes of the same call; extended in place.
        track: accepts one event.

    Returns:
        True if every envelope has a result. False if the buffer became full, or the client was closed, before the last
        envelope. If the caller then calls again with the remaining envelopes and no results, the error is raised.

    Raises:
        BufferFullError, ClientClosedError: an event was not accepted, and `results` was still empty.
    """
    for envelope in envelopes:
        try:
            if isinstance(envelope, EventValidationError):
                results.append(envelope)
            else:
                results.append(await track(reader.decode(envelope)))
        except EventValidationError as error:
            results.append(error)
        except (BufferFullError, ClientClosedError):
            if not results:
                raise
            return False
    return True
