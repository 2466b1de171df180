"""One typed method per event: the whole vocabulary of the API, on top of `track` alone.

Apart from the client, so that whatever tracks events (a recording double, a handle for threads) speaks it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from retailrocket_async._events.models import (
    AddToBasket,
    CategoryView,
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
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from retailrocket_async._events.models import Event
    from retailrocket_async._events.validators import Number
    from retailrocket_async._receipt import Receipt


class EventMethods(ABC):
    """The typed methods of a client; each makes its event and hands it to `track`.

    All of them take keywords only, check them by the API's contract, return the event's `Receipt` and raise what
    the event's class and `track` raise. `timestamp` left out means now.
    """

    __slots__ = ()

    @abstractmethod
    async def track(self, event: Event) -> Receipt:
        """Accept one event for delivery."""

    async def view(
        self,
        *,
        session_external_id: str,
        product_id: int,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A product page is viewed: track one `View`."""
        return await self.track(
            View(
                session_external_id=session_external_id,
                product_id=product_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def group_view(
        self,
        *,
        session_external_id: str,
        group_id: int,
        product_ids: Sequence[int],
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A page of a product group is viewed: track one `GroupView`."""
        return await self.track(
            GroupView(
                session_external_id=session_external_id,
                group_id=group_id,
                product_ids=product_ids,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def add_to_basket(
        self,
        *,
        session_external_id: str,
        product_id: int,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A product is put in the basket: track one `AddToBasket`."""
        return await self.track(
            AddToBasket(
                session_external_id=session_external_id,
                product_id=product_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def order(
        self,
        *,
        session_external_id: str,
        product_id: int,
        quantity: Number,
        price: Number,
        transaction: str,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A product is bought: track one `Order`."""
        return await self.track(
            Order(
                session_external_id=session_external_id,
                product_id=product_id,
                quantity=quantity,
                price=price,
                transaction=transaction,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def category_view(
        self,
        *,
        session_external_id: str,
        category_id: int,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A category page is viewed: track one `CategoryView`."""
        return await self.track(
            CategoryView(
                session_external_id=session_external_id,
                category_id=category_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def search(
        self,
        *,
        session_external_id: str,
        search_phrase: str,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A search phrase is entered: track one `Search`."""
        return await self.track(
            Search(
                session_external_id=session_external_id,
                search_phrase=search_phrase,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def set_contact(
        self,
        *,
        session_external_id: str,
        contact_external_id: str,
        email: str | None = None,
        phone: str | None = None,
        custom_data: Mapping[str, Any] | None = None,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A visitor's contact becomes known, at login or checkout: track one `SetContact`."""
        return await self.track(
            SetContact(
                session_external_id=session_external_id,
                contact_external_id=contact_external_id,
                email=email,
                phone=phone,
                custom_data=custom_data,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def recom_block_viewed(
        self,
        *,
        session_external_id: str,
        recom_block_id: str,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A block of recommendations is shown: track one `RecomBlockViewed`."""
        return await self.track(
            RecomBlockViewed(
                session_external_id=session_external_id,
                recom_block_id=recom_block_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def recom_tap(
        self,
        *,
        session_external_id: str,
        product_id: int,
        recom_block_id: str,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A recommended product is clicked: track one `RecomTap`."""
        return await self.track(
            RecomTap(
                session_external_id=session_external_id,
                product_id=product_id,
                recom_block_id=recom_block_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def recom_add_to_basket(
        self,
        *,
        session_external_id: str,
        product_id: int,
        recom_block_id: str,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """A product is put in the basket from a block of recommendations: track one `RecomAddToBasket`."""
        return await self.track(
            RecomAddToBasket(
                session_external_id=session_external_id,
                product_id=product_id,
                recom_block_id=recom_block_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def impression_content_viewed(
        self,
        *,
        session_external_id: str,
        impression_content_id: str,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """Sponsored content is shown: track one `ImpressionContentViewed`."""
        return await self.track(
            ImpressionContentViewed(
                session_external_id=session_external_id,
                impression_content_id=impression_content_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )

    async def impression_content_clicked(
        self,
        *,
        session_external_id: str,
        impression_content_id: str,
        timestamp: datetime | None = None,
    ) -> Receipt:
        """Sponsored content is clicked: track one `ImpressionContentClicked`."""
        return await self.track(
            ImpressionContentClicked(
                session_external_id=session_external_id,
                impression_content_id=impression_content_id,
                timestamp=utc_now() if timestamp is None else timestamp,
            )
        )
