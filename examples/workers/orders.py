"""The common code of all workers: the client, and the tracking of a paid order."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from retailrocket_async import RateLimit, order_lines
from retailrocket_async.application import RetailRocket

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient

# The web application of the shop has the rest of the limit.
rocket = RetailRocket(rate_limit=RateLimit(requests=10), grace=8)


Line: TypeAlias = dict[str, Any]
"""An order line: `product_id`, `quantity`, and the `price` of one piece as a string, which keeps it exact."""


async def track_order(client: AsyncTrackingClient, visitor: str, transaction: str, lines: list[Line]) -> None:
    """Track one event for each line of a paid order; return when all are accepted."""
    await client.track_many(
        order_lines(
            [{**line, "price": Decimal(line["price"])} for line in lines],
            session_external_id=visitor,
            transaction=transaction,
        )
    )
