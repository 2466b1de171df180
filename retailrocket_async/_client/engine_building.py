"""Builds the engine, which delivers the events of a client: with events in memory only, or in a spool on disk."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs

from retailrocket_async._delivery.dispatcher import Dispatcher
from retailrocket_async._queue.options import Buffer
from retailrocket_async._spool.dispatcher import SpooledDispatcher
from retailrocket_async._spool.leased_limiter import LeasedLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._delivery.engine import Engine
    from retailrocket_async._delivery.hooks import OutcomeHook, StateHook
    from retailrocket_async._delivery.ledger import Keeper
    from retailrocket_async._delivery.rate_limiter import Limiter
    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._http.credentials import Credentials
    from retailrocket_async._http.transport import HttpxTransport
    from retailrocket_async._observer import Watch
    from retailrocket_async._queue.options import Batching
    from retailrocket_async._spool.spool import SqliteSpool


def build_engine(  # noqa: PLR0913 - the parts of an engine
    *,
    credentials: Credentials,
    transport: HttpxTransport,
    limiter: Limiter,
    batching: Batching,
    buffer: Buffer,
    retry: RetryPolicy,
    spool: SqliteSpool | None,
    on_outcome: OutcomeHook | None,
    on_state_change: StateHook | None,
    watch: Watch | None,
) -> Engine:
    """Return an engine that has not started yet; the arguments are those of the client, already checked."""
    make_dispatcher = functools.partial(
        Dispatcher,
        batching=batching,
        transport=transport,
        renewable=credentials.renewable,
        on_outcome=on_outcome,
        on_state_change=on_state_change,
        watch=watch,
    )
    if spool is None:
        return make_dispatcher(limiter=limiter, buffer=buffer, retry=retry)
    # The spool's forwarder limits how many events are in memory, so the buffer needs no limit.
    unbounded = Buffer(max_age=buffer.max_age, max_bytes=1 << 50, max_visitor_events=1 << 50)

    def make_engine(keeper: Keeper, may_send: Callable[[], bool]) -> Dispatcher:
        # Connecting may take long, so the transport asks again right before it writes a request.
        transport.may_write = may_send
        return make_dispatcher(
            limiter=LeasedLimiter(limiter, may_send),
            buffer=unbounded,
            # Events on disk are retried until the outage ends, however long that takes.
            retry=attrs.evolve(retry, outlast=True),
            keeper=keeper,
        )

    return SpooledDispatcher(
        spool,
        credentials.partner_id,
        make_engine,
        request_timeout=transport.longest,
        batching=batching,
        once=retry.once_names,
        overflow=buffer.overflow,
    )
