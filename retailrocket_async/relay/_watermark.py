"""How far a partition of a log may be committed while its messages are settled in any order."""

from __future__ import annotations

import attrs


@attrs.define
class Watermark:
    """The messages of one partition that were handed out and not settled.

    A log knows one number a partition: everything below it is done with. So it may be committed up to the lowest
    message that is not settled, however many above it are.

    Attributes:
        position: one past the highest offset handed out; where reading goes on.
        committed: what the broker was told last; None until it was told anything.
    """

    position: int = 0
    committed: int | None = None
    # In the order of their offsets, since they are handed out in it.
    _open: dict[int, None] = attrs.field(factory=dict[int, None], init=False)

    def hand_out(self, offset: int) -> None:
        """Note that the message at `offset` was handed out.

        Offsets rise, with gaps where the log was compacted or holds markers of transactions. One below `position` is
        ignored: the log was read twice.
        """
        if offset >= self.position:
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
    def commit(self) -> int:
        """The offset up to which everything that was handed out is settled; never one that was not handed out."""
        return next(iter(self._open), self.position)
