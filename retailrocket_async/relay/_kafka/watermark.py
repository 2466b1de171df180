"""Computes which offset of a partition may be committed, although the partition's messages are settled in any order."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

_MARK = "settled above: "
_SENT = "sent below: "
_LONGEST = 4_000
"""Largest number of characters of a note. Kafka's brokers accept 4,096 bytes by default."""


class Watermark:
    """Records which messages of one partition were handed out and which of them are settled (need no more work).

    Kafka stores one offset per partition for a consumer group: all messages below the offset are settled. So the
    committed offset must not be above the offset of the oldest message that is not settled. Together with the offset
    Kafka stores a note, a short text. This class uses the note to list the settled messages above the offset, so that
    the partition's next reader skips these messages.

    Args:
        start: the committed offset, or the offset of the first message that is handed out.
        note: the text that was committed with `start`; ignored if another program has written the text.
        was_committed: whether `start` was committed.

    Attributes:
        position: the offset at which reading continues: one above the highest offset that was handed out.
        changes: how often the state has changed. A commit is needed only if this number is above `committed`.
        committed: the value of `changes` at the last commit.
        was_committed: whether the group has ever committed an offset of this partition.
        maybe_sent_below: messages below this offset may have been sent by an earlier reader of the partition, if they
            must be sent at most once.
        sent_below: messages below this offset may have been sent by this reader or an earlier one, likewise.
    """

    def __init__(self, start: int, note: str = "", *, was_committed: bool = False) -> None:
        self.position = start
        self.was_committed = was_committed
        self.changes = 0
        self.committed = 0
        # Offsets of the messages that were handed out and not settled. The offsets are in rising order, because
        # messages are handed out in this order.
        self._open: dict[int, None] = {}
        sent, settled = _parts(note)
        self.maybe_sent_below = self.sent_below = sent
        self._settled_before = deque(_ranges(start, settled))

    def hand_out(self, offset: int) -> bool:
        """Record that the message at `offset` was read; return True if the message has to be handed out.

        Call the method with rising offsets; gaps are allowed. A message that an earlier reader has settled is not
        handed out again.
        """
        self.position = offset + 1
        while self._settled_before and self._settled_before[0].stop <= offset:
            self._settled_before.popleft()
        if self._settled_before and offset in self._settled_before[0]:
            # Skipping a message counts as a change, because the offset that may be committed can rise.
            self.changes += 1
            return False
        self._open[offset] = None
        return True

    def record_sending(self, offset: int) -> None:
        """Record that the message at `offset` is about to be sent. The next commit stores this in the note."""
        if offset >= self.sent_below:
            self.sent_below = offset + 1
            self.changes += 1

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
        """The number of messages that were handed out and not settled."""
        return len(self._open)

    @property
    def settled_below(self) -> int:
        """The offset that may be committed: every message below this offset that was handed out is settled."""
        return next(iter(self._open), self.position)

    @property
    def note(self) -> str:
        """The settled messages above `settled_below`, as text, e.g. ``"settled above: 2 5 1 3"``.

        The numbers are lengths of runs of messages, beginning at `settled_below`. In this example 2 messages are not
        settled, the next 5 are settled, the next message is not settled, and the next 3 are settled. If the text would
        be too long, the messages with the highest offsets are left out. Messages that an earlier reader has settled are
        left out as long as this reader has not reached them. The next reader treats messages that are left out as not
        settled.

        If not all messages that may have been sent are settled, the note begins with the offset below which messages
        may have been sent, e.g. ``"sent below: 42; "``.
        """
        sent = f"{_SENT}{self.sent_below}; " if self.sent_below > self.settled_below else ""
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
        return sent + (_MARK + text if text else "")


def _parts(note: str) -> tuple[int, str]:
    """Return the offset below which messages may have been sent (0 if the note has none), and the rest of the note."""
    if not note.startswith(_SENT):
        return 0, note
    sent, _, rest = note.removeprefix(_SENT).partition("; ")
    return (int(sent) if sent.isdecimal() else 0), rest


def _ranges(start: int, note: str) -> list[range]:
    """Return the ranges of offsets that a note lists as settled, or an empty list if the note is not valid."""
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
