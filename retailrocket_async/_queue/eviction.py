"""Chooses the events to evict if the buffer is full.

An order is worth more to a shop than the impression of a banner. So the least valuable events are dropped first; among
events of equal value, the oldest is dropped first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, TypeVar, cast

from retailrocket_async._errors import ConfigurationError, brief

if TYPE_CHECKING:
    from collections.abc import Iterator

Overflow: TypeAlias = Literal["wait", "raise", "drop_newest", "drop_oldest", "shed"]
"""What happens to a new event if the buffer is full; see `Buffer.overflow`."""


class Ranking(Mapping[str, int]):
    """An immutable mapping of names to ranks. Unlike `MappingProxyType`, this mapping can be copied and pickled.

    Args:
        ranks: the ranks by name; the mapping is copied.
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
        "categoryViewByCategoryPath": 1,
        "emailClick": 1,
        "addToBasket": 2,
        "recomAddToBasket": 2,
        "setContact": 2,
        "welcomeSequence": 2,
        "order": 3,
    }
)
"""Values of events by wire name: impressions and block views are lowest, then views, taps, clicks in letters,
categories and searches, then baskets, contacts and welcome letters, then orders."""

_UNNAMED: Final = 1


def checked_ranking(ranking: object) -> Mapping[str, int]:
    """Return an immutable copy of a ranking.

    Raises:
        ConfigurationError: the ranking is no mapping of wire names to ints.
    """
    if not isinstance(ranking, Mapping):
        raise ConfigurationError(f"Buffer.ranking must be a mapping like {{'view': 1}}, not {brief(ranking)}")
    copy = dict(cast("Mapping[object, object]", ranking))
    for name, value in copy.items():
        if type(name) is not str or type(value) is not int:
            raise ConfigurationError(f"Buffer.ranking must map wire names to ints, not {brief(name)} to {brief(value)}")
    return Ranking(cast("dict[str, int]", copy))


RunT = TypeVar("RunT")


class Ranks(Generic[RunT]):
    """Holds the waiting events by rank, and finds the event to evict first: the oldest event of the lowest rank.

    Args:
        ranking: rank (value) of events by wire name; empty if all events have the same rank.
    """

    def __init__(self, ranking: Mapping[str, int]) -> None:
        self._ranking = dict(ranking)
        # The waiting events of each rank by serial number (see `Run`), oldest first, each with its run. The buffer's
        # list of runs cannot be used instead, because several runs are open at the same time, so runs are not sorted by
        # the age of all their events. A plain dict would be slow when its first entries are removed.
        self._waiting: dict[int, OrderedDict[int, RunT]] = {}
        self._bytes: Counter[int] = Counter()

    def of(self, event_name: str) -> int:
        """Return the rank of an event."""
        return self._ranking.get(event_name, _UNNAMED)

    def add(self, serial: int, run: RunT, event_name: str, size: int) -> None:
        """Add one event.

        Args:
            serial: the event's serial number; see `Run`.
            run: the run that the event waits in.
            event_name: the event's name as the API spells it.
            size: the event's number of bytes.
        """
        rank = self._ranking.get(event_name, _UNNAMED)
        waiting = self._waiting.get(rank)
        if waiting is None:
            waiting = self._waiting[rank] = OrderedDict()
            self._bytes[rank] = 0
        waiting[serial] = run
        self._bytes[rank] += size

    def remove(self, serial: int, event_name: str, size: int) -> None:
        """Remove an event that has left the buffer; `add` describes the arguments."""
        rank = self._ranking.get(event_name, _UNNAMED)
        del self._waiting[rank][serial]
        self._bytes[rank] -= size

    def yielding(self, event_name: str) -> int:
        """Return the number of bytes of all events that may be evicted for a new event called `event_name`."""
        rank = self.of(event_name)
        return sum(size for other, size in self._bytes.items() if other <= rank)

    def first(self, event_name: str) -> tuple[int, RunT] | None:
        """Return the serial number and the run of the event to evict for a new event called `event_name`, or None."""
        for rank in sorted(self._waiting):
            if rank > self.of(event_name):
                return None
            if waiting := self._waiting[rank]:
                return next(iter(waiting.items()))
        return None
