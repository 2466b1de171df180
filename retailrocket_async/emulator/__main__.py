"""``python -m retailrocket_async.emulator``: serves an emulator until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ._command import parser, settings_of
from ._server import serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._running import RunningEmulator
    from ._settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve an emulator; *arguments* are the command-line arguments, by default those of this process."""
    command = parser()
    parsed = command.parse_args(arguments)
    try:
        settings = settings_of(parsed)
    except ValueError as error:
        command.error(str(error))
    asyncio.run(_run(settings, parsed.host, parsed.port, until_stdin_closes=parsed.until_stdin_closes))


async def _run(settings: Settings, host: str, port: int, *, until_stdin_closes: bool) -> None:
    serving = asyncio.ensure_future(serve(settings, host, port, _announce))
    if until_stdin_closes:
        loop = asyncio.get_running_loop()
        # A thread waits for the standard input, because event loops on Windows cannot wait for the standard input.
        threading.Thread(target=_await_end, args=(loop, serving), daemon=True).start()
    with suppress(asyncio.CancelledError):
        await serving


def _announce(emulator: RunningEmulator) -> None:
    sys.stdout.write(f"emulator listening on {emulator.root}\n")
    sys.stdout.flush()


def _await_end(loop: asyncio.AbstractEventLoop, serving: asyncio.Future[None]) -> None:
    # The thread reads with os.read. A read of sys.stdin would hold the lock of sys.stdin, also while the interpreter
    # shuts down, and the interpreter then needs this lock.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(serving.cancel)


if __name__ == "__main__":
    # The objects of imported modules live as long as the process. Each garbage collection would check these tens of
    # thousands of objects and stop the event loop meanwhile. Requests that waited would then arrive together, so
    # requests within the limit would be refused.
    gc.collect()
    gc.freeze()
    main()
