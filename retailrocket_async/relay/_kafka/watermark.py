"""Computes how far a partition may be committed while its messages are settled in any order."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

_MARK = "settled above: "
_LONGEST = 4_000
"""Characters of a note at most; Kafka's brokers take 4,096 bytes by default."""


class Watermark:
    """The messages of one partition that were handed out and not settled.

    Kafka stores one offset for a consumer group: all messages below it are settled. So the group may commit up to the
    lowest message that is not settled. Kafka stores a note beside the offset. The note lists the settled messages above
    the offset, so that the next reader of the partition skips them.

    Args:
        start: the committed offset, or the offset of the first message that is handed out.
        note: the text that was committed with it; ignored unless it is a `note` of this class.
        was_committed: whether `start` was committed.

    Attributes:
        position: one past the highest offset that was handed out; reading continues there.
        changes: how often this object has changed, so that an unchanged one is not committed again.
        committed: the value of `changes` at the last commit.
        was_committed: whether the group has ever committed an offset of this partition.
    """

    def __init__(self, start: int, note: str = "", *, was_committed: bool = False) -> None:
        self.position = start
        self.was_committed = was_committed
        self.changes = 0
        self.committed = 0
        # In the order of their offsets, as messages are handed out in that order.
        self._open: dict[int, None] = {}
        self._settled_before = deque(_ranges(start, note))

    def hand_out(self, offset: int) -> bool:
        """Record that the message at `offset` was read; return whether to hand it out.

        Offsets rise, and may leave gaps. A message that was settled before the partition was read again is skipped.
        """
        self.position = offset + 1
        while self._settled_before and self._settled_before[0].stop <= offset:
            self._settled_before.popleft()
        if self._settled_before and offset in self._settled_before[0]:
            # All messages below a skipped one may be committed, so skipping alone is a change.
            self.changes += 1
            return False
        self._open[offset] = None
        return True

    def is_open(self, offset: int) -> bool:
        """Return whether the message at `offset` was handed out and not settled."""
        return offset in self._open

    def settle(self, offset: int) -> None:
        """Record that the message at `offset` is settled; a second call for the same offset changes nothing."""
        if offset in self._open:
            del self._open[offset]
            self.changes += 1

    @property
    def pending(self) -> int:
        """How many messages were handed out and not settled."""
        return len(self._open)

    @property
    def settled_below(self) -> int:
        """The offset that may be committed: every message below it that was handed out is settled."""
        return next(iter(self._open), self.position)

    @property
    def note(self) -> str:
        """The settled messages above `settled_below`, as lengths of runs: not settled, settled, not settled, and so on.

        If the text is too long, the highest messages count as not settled. So do messages that were settled before the
        partition was read again, and were not read since.
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
    """Return the offsets that are settled according to a note."""
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
