"""Reads arguments of a client from the environment, and checks the arguments that no other class checks."""

from __future__ import annotations

import inspect
import os
from typing import Any

from retailrocket_async._delivery.rate_limiter import Limiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import ConfigurationError
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._spool.spool import SqliteSpool


def add_environment(options: dict[str, Any]) -> None:
    """Add the missing API key, partner id and base URL to `options` from environment variables.

    Raises:
        ConfigurationError: a required variable is missing.
    """
    for keyword, variable in (("api_key", "RETAILROCKET_API_KEY"), ("partner_id", "RETAILROCKET_PARTNER_ID")):
        if keyword not in options:
            if not os.environ.get(variable):
                raise ConfigurationError(f"set the environment variable {variable}, or pass {keyword}=...")
            options[keyword] = os.environ[variable]
    if "base_url" not in options and os.environ.get("RETAILROCKET_BASE_URL"):
        options["base_url"] = os.environ["RETAILROCKET_BASE_URL"]


def check_arguments(  # noqa: PLR0913 - the arguments of the client
    *,
    rate_limit: object,
    limiter: object,
    batching: object,
    buffer: object,
    retry: object,
    spool: object,
    before_send: object,
    on_outcome: object,
    on_state_change: object,
) -> None:
    """Check the arguments of `AsyncTrackingClient`, each alone and in combination.

    Raises:
        ConfigurationError: an argument cannot work; the message says what to write instead.
    """
    for name, value, kind in (
        ("batching", batching, Batching),
        ("buffer", buffer, Buffer),
        ("retry", retry, RetryPolicy),
    ):
        if not isinstance(value, kind):
            raise ConfigurationError(f"{name} must be a {kind.__name__}(...), not {type(value).__name__}")
    _check_limit(rate_limit, limiter)
    if spool is not None and not isinstance(spool, SqliteSpool):
        raise ConfigurationError(f"spool must be a SqliteSpool(...) or None, not {type(spool).__name__}")
    _check_sizes(batching, buffer, spooled=spool is not None)
    for name, hook in (("on_outcome", on_outcome), ("on_state_change", on_state_change)):
        if hook is not None and not callable(hook):
            raise ConfigurationError(f"{name} must be a function or a coroutine function")
    if before_send is not None and (not callable(before_send) or inspect.iscoroutinefunction(before_send)):
        raise ConfigurationError("before_send must be a plain function that takes an event and returns one or None")


def _check_limit(rate_limit: object, limiter: object) -> None:
    if rate_limit is not None and not isinstance(rate_limit, RateLimit):
        raise ConfigurationError(f"rate_limit must be a RateLimit(...) or None, not {type(rate_limit).__name__}")
    if limiter is not None and not isinstance(limiter, Limiter):
        raise ConfigurationError("limiter must have the methods acquire, pause_until and throttled: see Limiter")
    if limiter is not None and rate_limit not in (None, RateLimit()):
        raise ConfigurationError("give either rate_limit or limiter: a limiter of your own has its own rate")


def _check_sizes(batching: object, buffer: object, *, spooled: bool) -> None:
    assert isinstance(batching, Batching)  # noqa: S101 - checked before
    assert isinstance(buffer, Buffer)  # noqa: S101 - checked before
    if spooled and buffer.overflow == "shed":
        raise ConfigurationError("a spool cannot shed by value: choose another Buffer.overflow")
    if batching.max_bytes > buffer.max_bytes:
        raise ConfigurationError("Buffer.max_bytes must be at least Batching.max_bytes, or a batch cannot fill")
