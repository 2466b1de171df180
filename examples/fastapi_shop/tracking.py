"""The tracking client of the shop."""

from __future__ import annotations

import os

from retailrocket_async import AsyncTrackingClient, RateLimit
from retailrocket_async.fastapi import RetailRocket


def make() -> AsyncTrackingClient:
    """Return the client of this worker process; the workers divide the shop's request limit among them."""
    workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
    return AsyncTrackingClient.from_env(rate_limit=RateLimit(requests=50 // workers))


rocket = RetailRocket(make, grace=10)
