"""Checks that an extra, a group of optional dependencies of the package, works if it is installed alone.

The nox session `extras` runs this script. The script uses no test library, because only the package with
the extra is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import subprocess
import sys

import httpx

from retailrocket_async import AsyncTrackingClient, Delivered, new_session_id

EMULATOR = ["retailrocket_async.emulator"]
COMMANDS = ["retailrocket_async.cli._app"]
MODULES: dict[str, list[str]] = {
    "none": [
        "retailrocket_async",
        "retailrocket_async.application",
        "retailrocket_async.asgi",
        "retailrocket_async.relay",
        "retailrocket_async.testing",
    ],
    "aiohttp": ["retailrocket_async.aiohttp"],
    "fastapi": ["retailrocket_async.fastapi"],
    "starlette": ["retailrocket_async.starlette"],
    "cli": COMMANDS,
    "emulator": EMULATOR,
    "http2": ["h2"],
    "redis": ["retailrocket_async.redis", "retailrocket_async.relay._redis_streams"],
    "kafka": ["retailrocket_async.relay._kafka"],
    "nats": ["retailrocket_async.relay._nats"],
    "otel": ["retailrocket_async.otel"],
    "relay": [*COMMANDS, "retailrocket_async.relay._health", "retailrocket_async.relay._metrics"],
}
"""Extras, each with modules that can be imported if the extra is installed."""


async def deliver(*, http2: bool) -> None:
    """Deliver an event to a server in this process, and open and close a client for an address without a server."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path.endswith("/visitorEvents")
        return httpx.Response(200, json={})

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http_client,
        AsyncTrackingClient("key", "shop", http_client=http_client) as client,
    ):
        receipt = await client.view(session_external_id=new_session_id(), product_id=1)
        assert isinstance(await receipt, Delivered)
    async with AsyncTrackingClient("key", "shop", base_url="http://127.0.0.1:9/", http2=http2):
        pass


def main(extra: str) -> None:
    """Check one extra; `extra` is its name, or "none" for the package without extras, or "all" for all extras."""
    wanted = sorted({name for names in MODULES.values() for name in names} if extra == "all" else MODULES[extra])
    for module in wanted:
        importlib.import_module(module)
    # If a module needs an extra that is not installed, the import error must name the extra.
    for other in sorted({"aiohttp", "emulator", "fastapi", "otel", "redis", "starlette"} - {extra}):
        for module in set(MODULES[other]) - {*wanted}:
            try:
                importlib.import_module(module)
            except ImportError as error:
                assert f'pip install "retailrocket-async[{other}]"' in str(error), (module, error)  # noqa: PT017
    asyncio.run(deliver(http2=extra in ("http2", "all")))
    if set(COMMANDS) <= {*wanted}:
        subprocess.run([sys.executable, "-m", "retailrocket_async", "--version"], check=True)
    else:
        # Without the extra `cli`, the command must print which extra to install.
        told = subprocess.run(
            [sys.executable, "-m", "retailrocket_async", "--version"], capture_output=True, text=True, check=False
        )
        assert told.returncode, told
        assert "retailrocket-async[cli]" in told.stderr, told.stderr
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{extra}: {', '.join(wanted)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
