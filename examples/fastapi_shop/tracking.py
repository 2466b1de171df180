"""The shop's client of Retail Rocket."""

from __future__ import annotations

import os

from retailrocket_async import AsyncTrackingClient, RateLimit
from retailrocket_async.fastapi import RetailRocket


def make() -> AsyncTrackingClient:
    """Return this worker's client: it has its part of the shop's limit, and keeps each visitor's events in order."""
    workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
    return AsyncTrackingClient.from_env(rate_limit=RateLimit(requests=50 // workers))


rocket = RetailRocket(make, grace=10)
