"""Checks many envelopes at once, and keeps the result of each in its place."""

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
"""The name, the visitor and the bytes to send of one event; or the error of an envelope that holds none."""


BRACKETS: Final = 2
"""Bytes of a batch's body beside its events and the commas between them."""


def too_large(name: str, size: int, max_bytes: int) -> EventValidationError:
    """Return the error of an event, or a batch, of `size` bytes if `Batching.max_bytes` is `max_bytes`."""
    return EventValidationError(name, "", f"must be at most {max_bytes} bytes of JSON (Batching.max_bytes)", size)


@attrs.frozen
class EnvelopeReader:
    """Checks the envelopes of one call.

    Attributes:
        codec: decodes an envelope.
        allow_custom: whether an unknown event name makes a `CustomEvent`; see `Codec.decode`.
        max_bytes: bytes of one event at most.
    """

    codec: Codec
    allow_custom: bool
    max_bytes: int

    def examine(self, envelopes: Sequence[bytes]) -> list[Examined]:
        """Return, for each envelope, what it holds or what is wrong with it."""
        results: list[Examined] = []
        examined, allow_custom, max_bytes = self.codec.examined, self.allow_custom, self.max_bytes
        for data in envelopes:
            try:
                found = examined(data, allow_custom=allow_custom)
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
            EventValidationError: as `Codec.decode`.
        """
        return self.codec.decode(envelope, allow_custom=self.allow_custom)


def merged(examined: Sequence[Examined], receipts: Iterable[Receipt]) -> Iterator[Receipt | EventValidationError]:
    """Yield a receipt for each event and the error of each other envelope, up to the first event without a receipt.

    Args:
        examined: what `EnvelopeReader.examine` returned.
        receipts: those of the events, in order; fewer if only the first events were accepted.
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
