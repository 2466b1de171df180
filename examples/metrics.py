"""A worker that serves its client's metrics to Prometheus, and sends the client's spans to the application's tracer.

Start it by ``python examples/metrics.py --port 9464``. The client reads its settings from the environment.
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
    """Track views of random products until SIGTERM or Ctrl-C."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with AsyncTrackingClient.from_env(observer=OpenTelemetryObserver()) as client:
        while not ended.is_set():
            await client.view(session_external_id=new_session_id(), product_id=random.randint(1, 1000))  # noqa: S311
            await asyncio.sleep(0.02)


def main() -> None:
    """Serve the metrics and run the worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9464, help="the port of /metrics; 0 for any free port")
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    server, _ = start_http_server(parser.parse_args().port, "127.0.0.1")
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}/metrics\n")
    sys.stdout.flush()
    asyncio.run(work())


if __name__ == "__main__":
    main()
