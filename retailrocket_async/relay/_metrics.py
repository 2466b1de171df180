"""The counters of a relay and its client as Prometheus metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from retailrocket_async._runtime.extras import needing
from retailrocket_async.relay._source import Lag

with needing("relay"):
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from retailrocket_async import AsyncTrackingClient
    from retailrocket_async.relay._relay import Relay

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATES = ("sending", "down", "halted")

_LAG_TIMEOUT = 2.0
"""Seconds to wait until the broker reports the lag. After this time the metrics are sent without the lag."""

_Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily


class RelayMetrics(Collector):
    """Exports the counters of a relay and its client to Prometheus.

    Args:
        relay: the relay.
        client: the relay's client.
    """

    def __init__(self, relay: Relay, client: AsyncTrackingClient) -> None:
        self._relay = relay
        self._client = client
        self._lag = Lag()
        # The metrics get their own registry, because the global registry belongs to the application.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    async def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        try:
            async with asyncio.timeout(_LAG_TIMEOUT):
                self._lag = await self._relay.lag()
        except Exception:  # noqa: BLE001 - other metrics show that the broker fails
            self._lag = Lag()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[_Family]:
        """Yield the metrics. The registry calls this method."""
        yield from self._of_the_relay()
        yield from self._of_the_client()

    def _of_the_relay(self) -> Iterator[_Family]:
        stats = self._relay.stats()
        relay = "retailrocket_relay"
        yield _count(f"{relay}_received", "Messages handed out by the broker.", stats.received)
        yield _count(f"{relay}_fetches", "Fetches that returned messages.", stats.fetches)
        yield _count(f"{relay}_redelivered", "Messages handed out before, to this relay or another.", stats.redelivered)
        yield _count(f"{relay}_delivered", "Messages whose events the API accepted.", stats.delivered)
        yield _count(f"{relay}_filtered", "Messages whose events before_send dropped.", stats.filtered)
        yield _count(f"{relay}_released", "Messages given back to the broker at the end.", stats.released)
        yield _count(
            f"{relay}_maybe_duplicates",
            "Delivered messages that the API may have recorded before.",
            stats.maybe_duplicates,
        )
        yield _count(f"{relay}_broker_failures", "Calls of the broker that failed.", stats.broker_failures)
        yield _counts(f"{relay}_dead", "Messages that became dead letters, by reason.", "reason", stats.dead)
        yield _gauge(f"{relay}_in_hand", "Messages handed out that have no outcome yet.", stats.in_hand)
        yield _gauge(f"{relay}_unsettled", "Messages with an outcome, not yet settled.", stats.unsettled)
        yield _gauge(f"{relay}_bytes", "Bytes of messages in hand or unsettled.", stats.size)
        yield _gauge(f"{relay}_oldest_age_seconds", "Age of the oldest message in hand.", stats.oldest_age)
        yield _gauge(f"{relay}_connected", "Whether the broker answers: 1 or 0.", int(stats.connected))
        for name, description, value in (
            ("waiting", "Messages that the broker has not handed out yet.", self._lag.waiting),
            ("pending", "Messages handed out, to any relay, and not settled.", self._lag.pending),
        ):
            if value is not None:
                yield _gauge(f"{relay}_lag_{name}", description, value)

    def _of_the_client(self) -> Iterator[_Family]:
        stats = self._client.stats()
        yield _count("retailrocket_requests", "Requests made, retries included.", stats.requests)
        answers = {str(status): count for status, count in stats.requests_by_status.items()}
        yield _counts("retailrocket_answers", "Requests by status, or kind of failure.", "status", answers)
        yield _count("retailrocket_retries", "Requests that repeated an earlier one.", stats.retries)
        yield _count("retailrocket_splits", "Requests to find out which events are bad.", stats.splits)
        yield _count("retailrocket_limiter_wait_seconds", "Seconds waited for the limiter.", stats.limiter_wait)
        yield _gauge("retailrocket_pending", "Events that wait for a request.", stats.pending)
        yield _gauge("retailrocket_in_flight", "Events in requests under way.", stats.in_flight)
        described = "The client's state: 1 for the current one, 0 for the others."
        state = GaugeMetricFamily("retailrocket_state", described, labels=["state"])
        for name in _STATES:
            state.add_metric([name], int(stats.state == name))
        yield state


def _count(name: str, description: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, description, value=value)


def _counts(name: str, description: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, description, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _gauge(name: str, description: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, description, value=value)
