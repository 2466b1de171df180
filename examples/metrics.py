"""A worker whose client is watched: metrics for Prometheus at /metrics, and spans wherever the application's go.

``python examples/metrics.py --port 9464``: the settings of the client come from the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from retailrocket_async import AsyncTrackingClient, new_session_id
from retailrocket_async.otel import OpenTelemetryObserver


async def work() -> None:
    """Track what made-up visitors look at, until SIGTERM or Ctrl-C."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with AsyncTrackingClient.from_env(observer=OpenTelemetryObserver()) as client:
        while not ended.is_set():
            await client.view(session_external_id=new_session_id(), product_id=random.randint(1, 1000))  # noqa: S311
            await asyncio.sleep(0.02)


def main() -> None:
    """Serve the metrics, and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9464, help="where /metrics is; 0 for any that is free")
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    server, _ = start_http_server(parser.parse_args().port, "127.0.0.1")
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}/metrics\n")
    sys.stdout.flush()
    asyncio.run(work())


if __name__ == "__main__":
    main()
