"""How far a partition of a log may be committed while its messages are settled in any order."""

from __future__ import annotations


class Watermark:
    """The messages of one partition that were handed out and not settled.

    A log keeps one number for a reader: everything below it is done with. So it may be committed up to the lowest
    message that is not settled, however many above it are.

    Args:
        start: the offset of the first message that is handed out.

    Attributes:
        position: one past the highest offset that was handed out; where reading goes on.
        committed: what the broker was told last; `start` until it was told anything.
    """

    def __init__(self, start: int) -> None:
        self.position = start
        self.committed = start
        # In the order of their offsets, since they are handed out in it.
        self._open: dict[int, None] = {}

    def hand_out(self, offset: int) -> None:
        """Note that the message at `offset` was handed out; offsets rise, and may leave gaps."""
        self._open[offset] = None
        self.position = offset + 1

    def is_open(self, offset: int) -> bool:
        """Return whether the message at `offset` was handed out and not settled."""
        return offset in self._open

    def settle(self, offset: int) -> None:
        """Note that the message at `offset` is done with; once more changes nothing."""
        self._open.pop(offset, None)

    @property
    def pending(self) -> int:
        """How many messages were handed out and not settled."""
        return len(self._open)

    @property
    def settled_below(self) -> int:
        """The offset below which everything that was handed out is settled: what may be committed."""
        return next(iter(self._open), self.position)
