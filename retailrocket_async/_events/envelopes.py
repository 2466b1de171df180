"""Checks a list of envelopes (events as JSON), and returns the results in the same order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from retailrocket_async._errors import EventValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from retailrocket_async._events.codec import Codec
    from retailrocket_async._events.models import Event
    from retailrocket_async._receipt import Receipt

Examined: TypeAlias = "tuple[str, str, bytes] | EventValidationError"
"""For a valid envelope the event's name, the visitor's session id and the bytes to send; otherwise the error."""


BRACKETS: Final = 2
"""Bytes of the two square brackets around the events of a batch."""


def too_large(name: str, size: int, max_bytes: int) -> EventValidationError:
    """Return the error for an event or batch whose `size` in bytes is above `max_bytes` (`Batching.max_bytes`)."""
    return EventValidationError(name, "", f"must be at most {max_bytes} bytes of JSON (Batching.max_bytes)", size)


def only_alone(name: str) -> EventValidationError:
    """Return the error for a call of `send_batch` with an event that no batch may hold."""
    return EventValidationError(name, "", "must be sent alone, because no batch may hold this event: use track or send")


@attrs.frozen
class EnvelopeReader:
    """Checks and decodes envelopes, with the settings that the attributes store.

    Attributes:
        codec: decodes an envelope.
        allow_custom: whether an unknown event name is decoded as a `CustomEvent`.
        allow_extra: whether unknown fields of a documented event are decoded as its `extra`.
        max_bytes: the largest allowed size of one event in bytes.
    """

    codec: Codec
    allow_custom: bool
    allow_extra: bool
    max_bytes: int

    def examine(self, envelopes: Sequence[bytes]) -> list[Examined]:
        """Check envelopes, and return one result per envelope, in order. `Examined` describes a result."""
        results: list[Examined] = []
        examined, max_bytes = self.codec.examined, self.max_bytes
        allow_custom, allow_extra = self.allow_custom, self.allow_extra
        for data in envelopes:
            try:
                found = examined(data, allow_custom=allow_custom, allow_extra=allow_extra)
            except EventValidationError as error:
                results.append(error)
                continue
            if len(found[2]) > max_bytes:
                results.append(too_large(found[0], len(found[2]), max_bytes + BRACKETS))
            else:
                results.append(found)
        return results

    def decode(self, envelope: bytes) -> Event:
        """Return the event that an envelope describes.

        Raises:
            EventValidationError: see `Codec.decode`.
        """
        return self.codec.decode(envelope, allow_custom=self.allow_custom, allow_extra=self.allow_extra)


def merged(examined: Sequence[Examined], receipts: Iterable[Receipt]) -> Iterator[Receipt | EventValidationError]:
    """Yield one result per envelope: the receipt of the event in a valid envelope, or the error of an invalid envelope.

    If there are fewer receipts than valid envelopes, stop at the first valid envelope without a receipt.

    Args:
        examined: the result of `EnvelopeReader.examine`.
        receipts: the receipts of the valid events, in order; fewer if only the first events were accepted.
    """
    remaining = iter(receipts)
    for each in examined:
        if isinstance(each, tuple):
            receipt = next(remaining, None)
            if receipt is None:
                return
            yield receipt
        else:
            yield each
