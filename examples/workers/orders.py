"""What all of the workers do with a paid order."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from retailrocket_async import RateLimit, order_lines
from retailrocket_async.application import RetailRocket

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient

# The shop's pages have the rest of the limit.
rocket = RetailRocket(rate_limit=RateLimit(requests=10), grace=8)


Line: TypeAlias = dict[str, Any]
"""A line of an order: `product_id`, `quantity`, and the `price` of one, a string, so that it stays what it is."""


async def track_order(client: AsyncTrackingClient, visitor: str, transaction: str, lines: list[Line]) -> None:
    """Track a paid order, a line at a time; return when all of it is accepted."""
    await client.track_many(
        order_lines(
            [{**line, "price": Decimal(line["price"])} for line in lines],
            session_external_id=visitor,
            transaction=transaction,
        )
    )
