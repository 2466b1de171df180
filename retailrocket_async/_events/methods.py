"""Defines one typed method per event of the API; each method calls `track`.

The methods are in a separate base class, so that any class with a method `track` can inherit them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from retailrocket_async._events.models import (
    AddToBasket,
    CategoryView,
    CategoryViewByCategoryPath,
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
    WelcomeSequence,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from retailrocket_async._events.models import Event
    from retailrocket_async._events.validators import Number
    from retailrocket_async._receipt import Receipt


class EventMethods(ABC):
    """Adds one method per event to a class; each method constructs its event and passes the event to `track`.

    The methods take keyword arguments only, check the arguments by the API's rules, and return the event's `Receipt`.
    The methods raise the errors of the event's class and of `track`. `timestamp` defaults to now. `extra` holds fields
    that the API's documentation does not name.
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
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `View`: a product page is viewed."""
        return await self.track(
            View(
                session_external_id=session_external_id,
                product_id=product_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
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
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `GroupView`: a page of a product group is viewed."""
        return await self.track(
            GroupView(
                session_external_id=session_external_id,
                group_id=group_id,
                product_ids=product_ids,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def add_to_basket(
        self,
        *,
        session_external_id: str,
        product_id: int,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `AddToBasket`: a product is put in the basket."""
        return await self.track(
            AddToBasket(
                session_external_id=session_external_id,
                product_id=product_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
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
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `Order`: a product is bought."""
        return await self.track(
            Order(
                session_external_id=session_external_id,
                product_id=product_id,
                quantity=quantity,
                price=price,
                transaction=transaction,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def category_view(
        self,
        *,
        session_external_id: str,
        category_id: int,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `CategoryView`: a category page is viewed."""
        return await self.track(
            CategoryView(
                session_external_id=session_external_id,
                category_id=category_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def search(
        self,
        *,
        session_external_id: str,
        search_phrase: str,
        stock_id: str | None = None,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `Search`: a search phrase is entered."""
        return await self.track(
            Search(
                session_external_id=session_external_id,
                search_phrase=search_phrase,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
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
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `SetContact`: a visitor's contact becomes known, at login or checkout."""
        return await self.track(
            SetContact(
                session_external_id=session_external_id,
                contact_external_id=contact_external_id,
                email=email,
                phone=phone,
                custom_data=custom_data,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def recom_block_viewed(
        self,
        *,
        session_external_id: str,
        recom_block_id: str,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `RecomBlockViewed`: a block of recommendations is shown."""
        return await self.track(
            RecomBlockViewed(
                session_external_id=session_external_id,
                recom_block_id=recom_block_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
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
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `RecomTap`: a recommended product is clicked."""
        return await self.track(
            RecomTap(
                session_external_id=session_external_id,
                product_id=product_id,
                recom_block_id=recom_block_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
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
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `RecomAddToBasket`: a product is put in the basket from a block of recommendations."""
        return await self.track(
            RecomAddToBasket(
                session_external_id=session_external_id,
                product_id=product_id,
                recom_block_id=recom_block_id,
                stock_id=stock_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def impression_content_viewed(
        self,
        *,
        session_external_id: str,
        impression_content_id: str,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `ImpressionContentViewed`: sponsored content is shown."""
        return await self.track(
            ImpressionContentViewed(
                session_external_id=session_external_id,
                impression_content_id=impression_content_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def impression_content_clicked(
        self,
        *,
        session_external_id: str,
        impression_content_id: str,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `ImpressionContentClicked`: sponsored content is clicked."""
        return await self.track(
            ImpressionContentClicked(
                session_external_id=session_external_id,
                impression_content_id=impression_content_id,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def email_click(
        self,
        *,
        session_external_id: str,
        mail_tracking_id: str,
        custom_data: Mapping[str, Any] | None = None,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `EmailClick`: a visitor comes to the shop from a letter."""
        return await self.track(
            EmailClick(
                session_external_id=session_external_id,
                mail_tracking_id=mail_tracking_id,
                custom_data=custom_data,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def welcome_sequence(
        self,
        *,
        session_external_id: str,
        email: str,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `WelcomeSequence`: the welcome letters for an address begin. Each call sends them again."""
        return await self.track(
            WelcomeSequence(
                session_external_id=session_external_id,
                email=email,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )

    async def category_view_by_category_path(
        self,
        *,
        session_external_id: str,
        category_path: str,
        timestamp: datetime | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Track one `CategoryViewByCategoryPath`: a category page is viewed, and the category is named by path."""
        return await self.track(
            CategoryViewByCategoryPath(
                session_external_id=session_external_id,
                category_path=category_path,
                timestamp=utc_now() if timestamp is None else timestamp,
                extra=extra,
            )
        )
