"""How far a partition of a log may be committed while its messages are settled in any order."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

_MARK = "settled above: "
_LONGEST = 4_000
"""Letters of a note; Kafka's brokers take 4,096 bytes by default."""


class Watermark:
    """The messages of one partition that were handed out and not settled.

    A log keeps one number for a reader: everything below it is done with. So it may be committed up to the lowest
    message that is not settled, however many above it are. Which those are goes into a note, which the log keeps beside
    the number, so that whoever reads on from there need not do them again.

    Args:
        start: the offset that was committed, or of the first message that is handed out.
        note: what was committed with it; anything else than a `note` of this class says nothing.
        was_committed: whether `start` was committed.

    Attributes:
        position: one past the highest offset that was handed out; where reading goes on.
        changes: how often it changed; what was committed at one count need not be committed again.
        committed: the count of what was committed last.
        was_committed: whether the log ever had a number for this reader.
    """

    def __init__(self, start: int, note: str = "", *, was_committed: bool = False) -> None:
        self.position = start
        self.was_committed = was_committed
        self.changes = 0
        self.committed = 0
        # In the order of their offsets, since they are handed out in it.
        self._open: dict[int, None] = {}
        self._settled_before = deque(_ranges(start, note))

    def hand_out(self, offset: int) -> bool:
        """Note that the message at `offset` comes next; return whether it is to be handed out.

        Offsets rise, and may leave gaps. A message that was settled before the partition was read again is left out.
        """
        self.position = offset + 1
        while self._settled_before and self._settled_before[0].stop <= offset:
            self._settled_before.popleft()
        if self._settled_before and offset in self._settled_before[0]:
            # All below a message that is left out may be committed, so that alone is a change.
            self.changes += 1
            return False
        self._open[offset] = None
        return True

    def is_open(self, offset: int) -> bool:
        """Return whether the message at `offset` was handed out and not settled."""
        return offset in self._open

    def settle(self, offset: int) -> None:
        """Note that the message at `offset` is done with; once more changes nothing."""
        if offset in self._open:
            del self._open[offset]
            self.changes += 1

    @property
    def pending(self) -> int:
        """How many messages were handed out and not settled."""
        return len(self._open)

    @property
    def settled_below(self) -> int:
        """The offset below which everything that was handed out is settled: what may be committed."""
        return next(iter(self._open), self.position)

    @property
    def note(self) -> str:
        """Which messages above `settled_below` are settled: how many follow one another that are not, and are, in turn.

        Where that is too long, the highest count as not settled. So do those that were settled before the partition was
        read again, and were not met since.
        """
        bounds = [*self._open, self.position]
        runs: list[int] = []
        opened = 0
        for offset, following in pairwise(bounds):
            opened += 1
            if following > offset + 1:
                runs += [opened, following - offset - 1]
                opened = 0
        text = " ".join(map(str, runs))
        if len(text) > _LONGEST:
            text = text[:_LONGEST].rpartition(" ")[0]
        return _MARK + text if text else ""


def _ranges(start: int, note: str) -> list[range]:
    """Return the offsets that a note says are settled."""
    if not note.startswith(_MARK):
        return []
    try:
        runs = [int(run) for run in note.removeprefix(_MARK).split()]
    except ValueError:
        return []
    ranges: list[range] = []
    for opened, settled in zip(runs[::2], runs[1::2], strict=False):
        first = start + opened
        ranges.append(range(first, first + settled))
        start = first + settled
    return ranges
