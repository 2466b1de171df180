"""What gives way where the buffer is full.

An order is worth more to a shop than the impression of a banner. Where events must be dropped, the least valuable
go first, and among equals the oldest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from retailrocket_async._errors import ConfigurationError, brief

if TYPE_CHECKING:
    from retailrocket_async._batch import Batch

Overflow: TypeAlias = Literal["wait", "raise", "drop_newest", "drop_oldest", "shed"]
"""What a full buffer means for one event more; see `Buffer.overflow`."""

DEFAULT_RANKING: Final[Mapping[str, int]] = MappingProxyType(
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
    return MappingProxyType(cast("dict[str, int]", copy))


class Ranks:
    """Finds the event that gives way first, among those that wait.

    Args:
        ranking: how valuable events are; empty where all are alike.
    """

    def __init__(self, ranking: Mapping[str, int]) -> None:
        self._ranking = dict(ranking)
        # For each rank the batches that hold events of it, oldest first, and how many.
        self._batches: dict[int, OrderedDict[Batch, int]] = {}

    def of(self, event_name: str) -> int:
        """Return the rank of an event."""
        return self._ranking.get(event_name, _UNNAMED)

    def add(self, batch: Batch, event_name: str) -> None:
        """Note one more event of a batch."""
        rank = self._ranking.get(event_name, _UNNAMED)
        batches = self._batches.get(rank)
        if batches is None:
            batches = self._batches[rank] = OrderedDict()
        batches[batch] = batches.get(batch, 0) + 1

    def removed(self, batch: Batch, removed: Batch) -> None:
        """Note events that were taken out of a batch."""
        for receipt in removed.receipts:
            batches = self._batches[self.of(receipt.event_name)]
            batches[batch] -= 1
            if not batches[batch]:
                del batches[batch]

    def forget(self, batch: Batch) -> None:
        """Forget a batch that waits no more."""
        for batches in self._batches.values():
            batches.pop(batch, None)

    def first(self, event_name: str) -> tuple[Batch, int] | None:
        """Return batch and position of the event that gives way to one of `event_name`; None where that one does."""
        for rank in sorted(self._batches):
            if rank > self.of(event_name):
                return None
            if batches := self._batches[rank]:
                batch = next(iter(batches))
                for position, receipt in enumerate(batch.receipts):
                    if self.of(receipt.event_name) == rank:
                        return batch, position
        return None
