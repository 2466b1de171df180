"""Makes up the events of a shop's day: visitors search, view products, fill baskets and sometimes buy."""

from __future__ import annotations

import heapq
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count, islice
from typing import TYPE_CHECKING, TypeAlias

from retailrocket_async import (
    AddToBasket,
    CategoryView,
    EmailClick,
    GroupView,
    ImpressionContentClicked,
    ImpressionContentViewed,
    Order,
    RecomAddToBasket,
    RecomBlockViewed,
    RecomTap,
    Search,
    SetContact,
    View,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from retailrocket_async import Event

    Acts: TypeAlias = Generator[tuple[datetime, Event]]
    """The events of one visit, each with its time."""

_PHRASES = ("desk", "oak desk for two", "угловой диван со спальным местом", "lámpara de pie", "書桌", "shelf " * 40)
_STOCKS = (None, None, None, "msk", "Нижний Новгород")
_EVENTS_PER_VISIT = 8
"""The approximate average number of events, from which the time between two visits is computed."""


def shop_day(events: int, seed: int) -> Iterator[Event]:
    """Return `events` events of a day, ordered by time; the same arguments give the same events.

    Args:
        events: the number of events, 1 or more.
        seed: the seed of the random numbers.
    """
    chance = random.Random(seed)  # noqa: S311 - made-up data, not a secret
    midnight = datetime(2025, 11, 28, tzinfo=UTC)
    gap = timedelta(days=1) * _EVENTS_PER_VISIT / (events + 100)
    return islice(_merged(_Visitor(chance, midnight + number * gap).visit() for number in count()), events)


def _merged(visits: Iterator[Acts]) -> Generator[Event]:
    """Yield the events of an endless series of visits, ordered by time; the visits must be ordered by their start."""
    # The heap is ordered by time, then by the visit's number, so events and generators are never compared.
    going_on: list[tuple[datetime, int, Event, Acts]] = []
    numbered = enumerate(visits)
    while True:
        number, visit = next(numbered)
        moment, first = next(visit)
        while going_on and going_on[0][0] < moment:
            _, which, event, rest = going_on[0]
            yield event
            following = next(rest, None)
            if following is None:
                heapq.heappop(going_on)
            else:
                heapq.heapreplace(going_on, (following[0], which, following[1], rest))
        heapq.heappush(going_on, (moment, number, first, visit))


class _Visitor:
    """Makes the events of one visit."""

    def __init__(self, chance: random.Random, begin: datetime) -> None:
        self._chance = chance
        self._now = begin
        self._session = f"{chance.getrandbits(96):024x}"
        self._stock = chance.choice(_STOCKS)
        self._basket: list[int] = []

    def visit(self) -> Acts:
        """Yield the events of the visit: an arrival, one to six views, and perhaps an order."""
        yield from self._arrive()
        for _ in range(self._chance.randint(1, 6)):
            yield from self._look()
        if self._basket and self._chance.random() < 0.6:
            yield from self._buy()

    def _arrive(self) -> Acts:
        way = self._chance.random()
        if way < 0.4:
            yield self._act(Search, search_phrase=self._chance.choice(_PHRASES), stock_id=self._stock)
        elif way < 0.7:
            yield self._act(CategoryView, category_id=self._chance.randint(1, 1_669))
        elif way < 0.75:
            yield self._act(EmailClick, mail_tracking_id=f"{self._chance.getrandbits(96):024x}")
        else:
            content = f"banner-{self._chance.randint(1, 9)}"
            yield self._act(ImpressionContentViewed, impression_content_id=content)
            if way < 0.875:
                yield self._act(ImpressionContentClicked, impression_content_id=content)

    def _look(self) -> Acts:
        product = self._product()
        if self._chance.random() < 0.1:
            sizes = tuple(self._product() for _ in range(self._chance.randint(1, 30)))
            yield self._act(GroupView, group_id=product, product_ids=sizes, stock_id=self._stock)
        else:
            yield self._act(View, product_id=product, stock_id=self._stock)
        if self._chance.random() < 0.2:
            yield from self._follow_a_recommendation()
        elif self._chance.random() < 0.25:
            self._basket.append(product)
            yield self._act(AddToBasket, product_id=product, stock_id=self._stock)

    def _follow_a_recommendation(self) -> Acts:
        block, product = self._chance.choice(("similar", "bought-together")), self._product()
        yield self._act(RecomBlockViewed, recom_block_id=block)
        if self._chance.random() < 0.5:
            yield self._act(RecomTap, product_id=product, recom_block_id=block, stock_id=self._stock)
        if self._chance.random() < 0.3:
            self._basket.append(product)
            yield self._act(RecomAddToBasket, product_id=product, recom_block_id=block, stock_id=self._stock)

    def _buy(self) -> Acts:
        yield self._act(
            SetContact,
            contact_external_id=self._session[:12],
            email=f"{self._session[:12]}@example.com",
            custom_data={"city": "Kazan", "letters": ["news"] * self._chance.randint(0, 40)},
        )
        number = f"{self._now:%Y%m%d}-{self._chance.randint(0, 999_999):06}"
        for product in self._basket:
            amount, price = self._chance.randint(1, 3), Decimal(self._chance.randint(99, 999_900)) / 100
            yield self._act(Order, product_id=product, quantity=amount, price=price, transaction=number)

    def _act(self, kind: Callable[..., Event], **fields: object) -> tuple[datetime, Event]:
        event = kind(session_external_id=self._session, timestamp=self._now, **fields)
        moment, self._now = self._now, self._now + timedelta(seconds=self._chance.randint(1, 90))
        return moment, event

    def _product(self) -> int:
        return self._chance.randint(1, 466_866)
