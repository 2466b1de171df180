"""Runs successful and failing commands of the command line, with a key that the commands must not print."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.support.failure_run import status_in
from tests.support.raw_server import Arrived, answer, raw_server
from tests.support.sinks import COMMANDS, KEY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.failure_run import Run

# A program that runs several commands in one process, because each start of a process takes a second.
IN_A_ROW = """
import json, os, sys
from retailrocket_async.cli import main
for line in sys.stdin:
    arguments, given = json.loads(line)
    os.environ.update(given)
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print(f"ended: {arguments[0]}: {end.code or 0}", flush=True)
"""

# A program in which `send` has a defect, and tracebacks print the values of variables.
CRASH = """
import rich.traceback
rich.traceback.install(show_locals=True, locals_max_string=None, width=1000)
from retailrocket_async.cli import _delivery, main
_delivery.Reader.stop = None
main()
"""


async def every_command(run: Run, folder: Path) -> None:
    """Run commands that succeed, fail, crash or are interrupted, and collect their output in `run`."""
    events = folder / "events.jsonl"
    await asyncio.to_thread(events.write_bytes, b'{"view":{"sessionExternalId":"a1","productId":1}}\noops\n')
    stalled = asyncio.Event()

    async def respond(request: Arrived, _: asyncio.StreamWriter) -> bytes:
        if (status := status_in(request)) == 0:
            stalled.set()
            await asyncio.get_running_loop().create_future()
        if status == 200 and request.query["apiKey"] != [KEY]:
            status = 401
        return answer(status, f"Location: http://127.0.0.1:9{request.target}")

    async with raw_server() as server:
        server.respond = respond
        url, send = server.url, ("send", str(events), "--give-up-after", "0")
        commands: list[tuple[Sequence[str], str, str]] = [
            *((("check",), f"{url}{status}/", KEY) for status in (200, 401)),
            *((send, f"{url}{status}/", KEY) for status in (200, 301, 401, 503)),
            *((arguments, url, KEY) for arguments in (("--help",), ("check", "--help"), ("nonsense",))),
            ((*send, "--base-url", "http://shop.test/"), url, KEY),
            (("check",), url, f"{KEY}\n"),
            (("check", "--timeout", "0.2"), f"{url}0/", KEY),
            (("check",), "http://127.0.0.1:9/", KEY),
        ]
        lines = [json.dumps((arguments, _environment(url, key))) for arguments, url, key in commands]
        out, _ = await python(run, ("-c", IN_A_ROW), _environment(url), "\n".join(lines).encode())
        run.met |= {line.removeprefix("ended: ") for line in out.splitlines() if line.startswith("ended: ")}
        out, status = await python(run, ("-c", CRASH, *send), _environment(f"{url}200/"))
        run.met |= {f"crashed: {status}"} if "NoneType" in out else set()
        stalled.clear()
        _, status = await python(run, ("-m", "retailrocket_async", *send), _environment(f"{url}0/"), interrupt=stalled)
        run.met.add(f"interrupted: {status}")


def _environment(url: str, key: str = KEY) -> dict[str, str]:
    given = {"RETAILROCKET_API_KEY": key, "RETAILROCKET_PARTNER_ID": "partner", "RETAILROCKET_BASE_URL": url}
    # With these settings Python prints the most warnings and debug messages.
    return {"PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "default", **given}


async def python(
    run: Run,
    arguments: Sequence[str],
    given: dict[str, str],
    stdin: bytes = b"",
    interrupt: asyncio.Event | None = None,
) -> tuple[str, int | None]:
    """Run Python, and add its output to the texts that `run` collects. Return the output and the exit status.

    If `interrupt` is given, send SIGINT twice as soon as the event is set.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        env={**os.environ, **given},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    talking = asyncio.create_task(process.communicate(stdin))
    if interrupt is not None:
        await interrupt.wait()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
    out, _ = await talking
    run.sinks.put(COMMANDS, out.decode())
    return out.decode(), process.returncode
