"""The latest requests in the order of their answers, and the number of requests per second, for the live page."""

from __future__ import annotations

from collections import deque
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from ._judge import PREFIX

if TYPE_CHECKING:
    from ._records import RequestRecord

__all__ = ["Feed"]

_REQUESTS: Final = 1_000
_SECONDS: Final = 60


class Feed:
    """Holds the last 1,000 requests whose answer is decided. Each has a place: a number that is never used again.

    A reader remembers the place of the last request that the reader has received, and asks for the requests after that
    place. So the emulator stores nothing for a reader, however slow the reader is. A reader that was too slow learns
    how many requests the reader has missed.

    Attributes:
        run: a random word for this feed. An earlier emulator on the same port has another word, so the run
            shows which emulator a place is from.
        last: the place of the newest entry; 0 if there is no entry yet.
        cleared: the place of the last `clear`; 0 if `clear` was never called.
    """

    def __init__(self) -> None:
        self.run = token_hex(4)
        self.last = self.cleared = 0
        self._records: deque[RequestRecord] = deque(maxlen=_REQUESTS)
        self._rates: dict[int, list[int]] = {}

    def add(self, record: RequestRecord) -> None:
        """Append a request whose answer is decided."""
        self._records.append(record)
        self.last += 1
        if record.method == "POST" and record.path.startswith(PREFIX):
            rate = self._rate(int(record.time))
            rate[0] += 1
            # If a request with a fault is answered 429, the 429 comes from the fault and not from the limit.
            rate[1] += record.status == 429 and record.fault is None

    def clear(self) -> None:
        """Forget the requests, and increase `last` by 1 as a new request does, so that readers get a message."""
        self._records.clear()
        self._rates.clear()
        self.last += 1
        self.cleared = self.last

    def after(self, place: int) -> tuple[int, list[RequestRecord]]:
        """Return the number of dropped requests after *place*, and the requests after *place* that are stored.

        The stored requests are in order, oldest first.
        """
        place = max(place, self.cleared)
        before = self.last - len(self._records)
        return max(0, before - place), list(islice(self._records, max(0, place - before), None))

    def rates(self) -> list[tuple[int, int, int]]:
        """Return the number of arrivals in each of the last 60 seconds; seconds without an arrival are left out.

        Each entry is the second (since 1970), the number of arrivals, and the number of arrivals over the limit. A
        request is counted when the request's answer is decided.
        """
        return [(second, arrived, over) for second, (arrived, over) in sorted(self._rates.items())]

    def _rate(self, second: int) -> list[int]:
        if second not in self._rates:
            self._rates[second] = [0, 0]
            newest = max(self._rates)
            for old in [held for held in self._rates if held < newest - _SECONDS]:
                del self._rates[old]
        # If a request is answered more than a minute after the request's arrival, the second of the arrival is no
        # longer stored. The request is then counted in a list that is thrown away.
        return self._rates.get(second, [0, 0])
