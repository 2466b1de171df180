"""The asyncio SDK for Retail Rocket's user-behaviour tracking API.

The client collects events into `visitorEvents` batches, respects the shop's request limit, and retries a failed request
if a retry can help. Each event gets exactly one outcome: delivered, rejected, abandoned, dropped or, if the client has
a spool, kept.
"""

from __future__ import annotations

from retailrocket_async._client.threadsafe_handle import ThreadsafeHandle
from retailrocket_async._client.tracking_client import AsyncTrackingClient
from retailrocket_async._delivery.rate_limiter import Limiter, LocalLimiter, Permit, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import (
    AbandonedError,
    AccessDeniedError,
    AuthenticationError,
    BadRequestError,
    BufferFullError,
    ClientClosedError,
    ConfigurationError,
    DeliveryError,
    DroppedError,
    EventValidationError,
    FlushTimeoutError,
    HaltedError,
    HandleTimeoutError,
    KeptError,
    NoAnswerError,
    NotFoundError,
    RejectedError,
    RetailRocketError,
    ServerError,
    SpoolError,
    SpoolFullError,
    ThrottledError,
    UncopyableError,
    UsageError,
    WrongLoopError,
)
from retailrocket_async._events.codec import Codec
from retailrocket_async._events.models import (
    EVENT_TYPES,
    AddToBasket,
    CategoryView,
    CategoryViewByCategoryPath,
    CustomEvent,
    EmailClick,
    Event,
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
    new_session_id,
)
from retailrocket_async._events.order_lines import order_lines
from retailrocket_async._observer import ObservedClient, ObservedRequest, Observer
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept, Outcome, Rejected
from retailrocket_async._queue.eviction import DEFAULT_RANKING
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._receipt import Receipt
from retailrocket_async._runtime.exports import publish
from retailrocket_async._spool.spool import DeadEvent, SpoolContents, SpooledEvent, SqliteSpool
from retailrocket_async._stats import CloseReport, SpoolStats, StateChange, Stats, UndeliveredEvent

__all__ = [
    "DEFAULT_RANKING",
    "EVENT_TYPES",
    "Abandoned",
    "AbandonedError",
    "AccessDeniedError",
    "AddToBasket",
    "AsyncTrackingClient",
    "AuthenticationError",
    "BadRequestError",
    "Batching",
    "Buffer",
    "BufferFullError",
    "CategoryView",
    "CategoryViewByCategoryPath",
    "ClientClosedError",
    "CloseReport",
    "Codec",
    "ConfigurationError",
    "CustomEvent",
    "DeadEvent",
    "Delivered",
    "DeliveryError",
    "Dropped",
    "DroppedError",
    "EmailClick",
    "Event",
    "EventValidationError",
    "FlushTimeoutError",
    "GroupView",
    "HaltedError",
    "HandleTimeoutError",
    "ImpressionContentClicked",
    "ImpressionContentViewed",
    "Kept",
    "KeptError",
    "Limiter",
    "LocalLimiter",
    "NoAnswerError",
    "NotFoundError",
    "ObservedClient",
    "ObservedRequest",
    "Observer",
    "Order",
    "Outcome",
    "Permit",
    "RateLimit",
    "Receipt",
    "RecomAddToBasket",
    "RecomBlockViewed",
    "RecomTap",
    "Rejected",
    "RejectedError",
    "RetailRocketError",
    "RetryPolicy",
    "Search",
    "ServerError",
    "SetContact",
    "SpoolContents",
    "SpoolError",
    "SpoolFullError",
    "SpoolStats",
    "SpooledEvent",
    "SqliteSpool",
    "StateChange",
    "Stats",
    "ThreadsafeHandle",
    "ThrottledError",
    "UncopyableError",
    "UndeliveredEvent",
    "UsageError",
    "View",
    "WelcomeSequence",
    "WrongLoopError",
    "new_session_id",
    "order_lines",
]

publish(globals())
del publish


def __getattr__(name: str) -> str:
    # Reading the package metadata takes milliseconds, so the version is read on first use and not at import.
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("retailrocket-async")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
