"""What gives way where the buffer is full.

An order is worth more to a shop than the impression of a banner. Where events must be dropped, the least valuable
go first, and among equals the oldest.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from retailrocket_async._errors import ConfigurationError, brief

if TYPE_CHECKING:
    from collections.abc import Iterator

    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._receipt import Receipt

Overflow: TypeAlias = Literal["wait", "raise", "drop_newest", "drop_oldest", "shed"]
"""What a full buffer means for one event more; see `Buffer.overflow`."""


class Ranking(Mapping[str, int]):
    """A mapping that nobody can change, and that can be copied and pickled: `MappingProxyType` cannot.

    Args:
        ranks: what is in it.
    """

    __slots__ = ("_ranks",)

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self._ranks = dict(ranks)

    def __getitem__(self, name: str) -> int:
        return self._ranks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks)

    def __len__(self) -> int:
        return len(self._ranks)

    def __hash__(self) -> int:
        return hash(frozenset(self._ranks.items()))

    def __repr__(self) -> str:
        return repr(self._ranks)


DEFAULT_RANKING: Final[Mapping[str, int]] = Ranking(
    {
        "impressionContentViewed": 0,
        "impressionContentClicked": 0,
        "recomBlockViewed": 0,
        "view": 1,
        "groupView": 1,
        "categoryView": 1,
        "search": 1,
        "recomTap": 1,
        "addToBasket": 2,
        "recomAddToBasket": 2,
        "setContact": 2,
        "order": 3,
    }
)
"""How valuable the events are, by wire name: impressions and block views, then views, taps, categories and searches,
then baskets and contacts, then orders."""

_UNNAMED: Final = 1


def checked_ranking(ranking: object) -> Mapping[str, int]:
    """Return a copy of a ranking that nobody can change.

    Raises:
        ConfigurationError: no mapping of wire names to ints.
    """
    if not isinstance(ranking, Mapping):
        raise ConfigurationError(f"Buffer.ranking must be a mapping like {{'view': 1}}, not {brief(ranking)}")
    copy = dict(cast("Mapping[object, object]", ranking))
    for name, value in copy.items():
        if type(name) is not str or type(value) is not int:
            raise ConfigurationError(f"Buffer.ranking must map wire names to ints, not {brief(name)} to {brief(value)}")
    return Ranking(cast("dict[str, int]", copy))


class Ranks:
    """Finds the event that gives way first, among those that wait.

    Args:
        ranking: how valuable events are; empty where all are alike.
    """

    def __init__(self, ranking: Mapping[str, int]) -> None:
        self._ranking = dict(ranking)
        # For each rank its waiting events, oldest first, each with its batch: with lanes, batches are open side by
        # side, so that the order of the batches is not that of their events. A plain dict is slow at its front.
        self._waiting: dict[int, OrderedDict[Receipt, Batch]] = {}
        self._bytes: Counter[int] = Counter()

    def of(self, event_name: str) -> int:
        """Return the rank of an event."""
        return self._ranking.get(event_name, _UNNAMED)

    def add(self, batch: Batch, receipt: Receipt, size: int) -> None:
        """Note one more event of a batch, and its bytes."""
        rank = self._ranking.get(receipt.event_name, _UNNAMED)
        waiting = self._waiting.get(rank)
        if waiting is None:
            waiting = self._waiting[rank] = OrderedDict()
            self._bytes[rank] = 0
        waiting[receipt] = batch
        self._bytes[rank] += size

    def forget(self, gone: Batch) -> None:
        """Forget events that wait no more."""
        for envelope, receipt in gone:
            rank = self.of(receipt.event_name)
            del self._waiting[rank][receipt]
            self._bytes[rank] -= len(envelope) + 1

    def yielding(self, event_name: str) -> int:
        """Return the bytes of all events that give way to one of `event_name`."""
        rank = self.of(event_name)
        return sum(size for other, size in self._bytes.items() if other <= rank)

    def first(self, event_name: str) -> tuple[Batch, int] | None:
        """Return batch and position of the event that gives way to one of `event_name`; None where that one does."""
        for rank in sorted(self._waiting):
            if rank > self.of(event_name):
                return None
            if waiting := self._waiting[rank]:
                receipt, batch = next(iter(waiting.items()))
                return batch, batch.receipts.index(receipt)
        return None
