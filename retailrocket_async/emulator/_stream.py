"""``GET /_control/stream``: requests and changes as server-sent events, at most ten messages a second.

Each message has the type ``update`` and is a JSON object. Every object has ``now``, the seconds since 1970, and those
of the following keys whose values have changed:

===============  ============================================================================================
key              value
===============  ============================================================================================
``requests``     requests whose answer is decided, in the order of the answers, as in ``GET requests``, but with
                 up to 512 KiB of an accepted body; ``cut`` says whether a part of the body is missing
``missed``       how many requests before those in ``requests`` the reader has missed, because the reader
                 was too slow or connected too late
``rates``        for each second of the last minute: the second (since 1970), the number of arrivals, and the
                 number of arrivals over the limit
``violations``   new violations of a visitor's order, as in ``GET violations``; a reader that reconnects gets all
                 that are listed again, with their numbers
``stats``        the counters
``reset``        true: the reader must forget everything from earlier messages
``faults``       the pending faults
``settings``     the settings, without the key
===============  ============================================================================================

A message's id names the last request in the message. A reader that reconnects sends this id as the header
``Last-Event-ID`` or the parameter ``after``, and gets the later requests. If the id is from another emulator, the
reader gets all stored requests, and ``reset``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._emulator import Emulator
    from ._fault import Fault
    from ._records import RequestRecord
    from ._settings import Settings

__all__ = ["stream"]

# The largest number of bytes of request bodies in one message. Writing a message of this size blocks the event loop for
# two or three milliseconds.
_BODY: Final = 512 * 1024
_REQUESTS: Final = 200
_VIOLATIONS: Final = 200
_RETRY: Final = b"retry: 1000\n\n"
_ALIVE: Final = b": still here\n\n"


async def stream(
    emulator: Emulator, last_id: str | None = None, *, interval: float = 0.1, keep_alive: float = 15.0
) -> AsyncIterator[bytes]:
    """Yield messages until the emulator stops.

    Args:
        emulator: the emulator.
        last_id: the id of the last message that the reader has received; None (default) for a new reader.
        interval: the smallest number of seconds between two messages; default 0.1.
        keep_alive: seconds without a message after which a comment is sent; default 15.0.
    """
    watch = _Watch(emulator, last_id)
    yield _RETRY
    silent = 0.0
    while True:
        if (message := watch.message()) is not None:
            silent = 0.0
            yield message
        elif silent >= keep_alive:
            silent = 0.0
            yield _ALIVE
        # The stream asks for changes at intervals. A notification for each request would make requests slower while a
        # reader is connected.
        if not await emulator.pause(interval):
            return
        silent += interval


class _Watch:
    """Makes the messages for one reader, and remembers which state the reader has received."""

    def __init__(self, emulator: Emulator, last_id: str | None) -> None:
        self._emulator = emulator
        place = None if last_id is None else _place(emulator, last_id)
        self._place = place or 0
        self._is_foreign_id = last_id is not None and place is None
        self._settings: Settings | None = None
        self._faults: list[Fault] | None = None
        self._violation = 0

    def message(self) -> bytes | None:
        """Return a message with all changes since the last message, or None if nothing has changed."""
        emulator = self._emulator
        update: dict[str, Any] = {}
        if self._settings is not emulator.settings:
            self._settings = emulator.settings
            update["settings"] = self._settings.shown()
        if (faults := emulator.faults.pending()) != self._faults:
            self._faults = faults
            update["faults"] = [fault.as_dict() for fault in faults]
        if self._is_foreign_id or self._place < emulator.feed.cleared:
            update["reset"] = True
            self._violation = 0
        if found := emulator.order.after(self._violation)[:_VIOLATIONS]:
            self._violation = found[-1].number
            update["violations"] = [violation.as_dict() for violation in found]
        if update or self._place < emulator.feed.last:
            update |= self._requests()
        if not update:
            return None
        update["now"] = emulator.wall(emulator.now())
        return b"id: %s.%d\nevent: update\ndata: %s\n\n" % (
            emulator.feed.run.encode(),
            self._place,
            orjson.dumps(update),
        )

    def _requests(self) -> dict[str, Any]:
        feed = self._emulator.feed
        missed, held = feed.after(self._place)
        shown: list[dict[str, Any]] = []
        size = 0
        for record in held[:_REQUESTS]:
            body = self._body(record)
            size += len(body)
            if shown and size > _BODY:
                break
            text = body.decode(errors="replace")
            shown.append(record.as_dict() | {"body": text, "cut": record.size > len(body)})
        self._place = feed.last - len(held) + len(shown)
        self._is_foreign_id = False
        update: dict[str, Any] = {"requests": shown, "rates": feed.rates(), "stats": self._emulator.stats()}
        return update | ({"missed": missed} if missed else {})

    def _body(self, record: RequestRecord) -> bytes:
        whole = self._emulator.ledger.body(record)
        return whole if len(whole) <= _BODY else record.body


def _place(emulator: Emulator, last_id: str) -> int | None:
    run, _, place = last_id.partition(".")
    if run != emulator.feed.run or not (place.isascii() and place.isdigit()) or len(place) > 18:
        return None
    return int(place) if int(place) <= emulator.feed.last else None
