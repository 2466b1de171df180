"""Serves an emulator: in the running event loop until a block ends, or until a signal arrives."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

from uvicorn import Config
from uvicorn.server import ServerState

from . import _wire
from ._app import app_of
from ._emulator import Emulator
from ._running import RunningEmulator
from ._settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import FrameType

__all__ = ["running_emulator", "serve"]

_KEEP_ALIVE: Final = 75
_GRACE: Final = 1.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a key to look up, not an address to bind


@asynccontextmanager
async def running_emulator(
    settings: Settings | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncGenerator[RunningEmulator]:
    """Serve an emulator in the current event loop while the block runs.

    Signal handlers and loggers are not changed, and any number of emulators may run side by side. At the end of the
    block every connection is closed, and requests that are not answered yet get no answer.

    Args:
        settings: how the emulator behaves; None (default) for ``Settings()``.
        host: the address to listen on; default ``"127.0.0.1"``, this machine alone.
        port: the port to listen on; default 0 for any free port.

    Raises:
        OSError: the emulator cannot listen on the address.
    """
    emulator = Emulator(Settings() if settings is None else settings)
    # uvicorn's Server is not used, because Server waits in steps of 0.1 s, and a test run starts hundreds of emulators.
    config = Config(
        app_of(emulator),
        http=_wire.WireProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _wire.WireProtocol(config, state, {}, loop), host, port, backlog=config.backlog
    )
    try:
        yield RunningEmulator(_root(server), emulator)
    finally:
        emulator.stop()
        await _stop_accepting(server)
        await _disconnect(state)
        await server.wait_closed()


async def _stop_accepting(server: asyncio.Server) -> None:
    # If a server is closed while asyncio is accepting a connection, asyncio loses that connection (an assertion in
    # Server._attach, python/cpython#109564). So the server first stops accepting, and waits two turns of the event
    # loop until asyncio has accepted the connections that had already arrived.
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        with suppress(NotImplementedError):
            loop.remove_reader(listener)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    server.close()


async def _disconnect(state: ServerState) -> None:
    for connection in cast("list[_wire.WireProtocol]", list(state.connections)):
        if connection.busy:
            _wire.abort(connection.transport)
        else:
            connection.shutdown()
    if state.tasks:
        await asyncio.wait(list(state.tasks), timeout=_GRACE)


def _root(server: asyncio.Server) -> str:
    bound: tuple[str, int] = server.sockets[0].getsockname()[:2]
    port = bound[1]
    address = _EVERYWHERE.get(bound[0], bound[0])
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


async def serve(
    settings: Settings | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[RunningEmulator], object] | None = None,
) -> None:
    """Serve an emulator until this task is cancelled or, in the main thread, until SIGINT or SIGTERM.

    Args:
        settings: how the emulator behaves; None (default) for ``Settings()``.
        host: the address to listen on; default ``"127.0.0.1"``, this machine alone.
        port: the port to listen on; default 0 for any free port.
        ready: called once with the emulator as soon as the emulator accepts connections; default None.

    Raises:
        OSError: the emulator cannot listen on the address.
    """
    stop = asyncio.Event()
    with _signalled(stop):
        async with running_emulator(settings, host, port) as emulator:
            if ready is not None:
                ready(emulator)
            await stop.wait()


@contextmanager
def _signalled(stop: asyncio.Event) -> Generator[None]:
    """Set *stop* on SIGINT and SIGTERM while the block runs; restore the earlier handlers when the block ends."""
    # Only the main thread may set signal handlers.
    main = threading.current_thread() is threading.main_thread()
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop.set)

    # signal.signal works on every platform and returns the earlier handler; loop.add_signal_handler does not.
    before = {number: signal.signal(number, handle) for number in _SIGNALS if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
