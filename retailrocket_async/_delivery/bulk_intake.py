"""Accepts the events of many envelopes into the queue: a part of them in one step if there is room for it."""

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
"""Envelopes of one part, after which other tasks run: a part takes a millisecond or two."""


async def accept_envelopes(
    envelopes: Sequence[bytes], reader: EnvelopeReader, intake: Intake, *, track: Callable[[Event], Awaitable[Receipt]]
) -> list[Result]:
    """Accept the events that envelopes describe, in order; see `Engine.accept_envelopes`.

    Args:
        envelopes: JSON.
        reader: checks them.
        intake: accepts the events of a part if there is room for all of them.
        track: accepts one event, if there is not.
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
        envelopes: JSON; or the error of an envelope that was refused before.
        reader: decodes them.
        results: those of the envelopes before these.
        track: accepts one event.

    Returns:
        Whether all events were dealt with. If not, the next one was not accepted; a call with the rest raises why.

    Raises:
        BufferFullError, ClientClosedError: the first event was not accepted.
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
