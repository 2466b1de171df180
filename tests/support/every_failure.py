"""A program that puts a client through every kind of failure, or leaks the key on purpose, and collects all output.

A sink is a place that a secret may reach: a log, a traceback, a span; see `tests.support.sinks`. With
``python -m tests.support.every_failure survive|leak FILE`` the program writes the texts in all sinks, and the names of
the failures that happened, to FILE as JSON. The program needs a process of its own, because some of its instrumentation
cannot be undone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import httpx
import trustme

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    LocalLimiter,
    RetailRocketError,
    SetContact,
    ThreadsafeHandle,
    UndeliveredEvent,
)
from retailrocket_async.emulator import Settings, emulator_process
from tests.support import sinks as named
from tests.support.every_command import every_command, python
from tests.support.failure_run import ONCE, QUICK, Run, events, status_in
from tests.support.h2_server import h2_server
from tests.support.raw_server import Arrived, answer, raw_server, reset
from tests.support.sinks import KEY, PERSONAL, Sinks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


async def _statuses(run: Run) -> None:
    async with raw_server() as server, raw_server() as elsewhere:

        async def echo(request: Arrived, _: asyncio.StreamWriter) -> bytes:
            headers = f"Location: {elsewhere.url}{request.target}", "Retry-After: 0"
            return answer(status_in(request), *headers, body=request.target.encode() + request.body)

        server.respond = echo
        async with httpx.AsyncClient(follow_redirects=True) as own, asyncio.TaskGroup() as all_at_once:
            for status in (200, 301, 303, 307, 400, 401, 403, 404, 408, 413, 500, 501):
                all_at_once.create_task(run.against(f"{server.url}{status}/"))
            for status in (200, 307, 401):
                all_at_once.create_task(run.against(f"{server.url}{status}/", http_client=own))
        # Only one request gets a 429, because after each 429 the client waits longer.
        async with run.client(f"{server.url}429/", retry=ONCE) as client:
            await run.attempt(client.send(events()[0]))
        if elsewhere.connections:
            run.met.add("followed a redirect")


async def _broken(run: Run) -> None:
    stalled = asyncio.Event()

    async def rst(_: Arrived, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> None:
        stalled.set()
        await asyncio.get_running_loop().create_future()

    async def truncate(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def cut(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200")

    async def garbage(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xff no HTTP\r\n\r\n")

    async with raw_server() as server:
        for respond in (rst, stall, truncate, cut, garbage):
            server.respond = respond
            await run.against(server.url, timeout=0.2)
        await _cut_short(run, server.url, stalled)


async def _cut_short(run: Run, url: str, stalled: asyncio.Event) -> None:
    # The server of the calling function no longer stalls, so this function runs another server that stalls.
    async with raw_server() as server:

        async def stall(_: Arrived, __: asyncio.StreamWriter) -> None:
            stalled.set()
            await asyncio.get_running_loop().create_future()

        server.respond = stall
        async with run.client(server.url, close_in=0.0) as client:
            stalled.clear()
            sending = asyncio.create_task(client.send(events()[0]))
            await stalled.wait()
            run.sinks.everything_alive()
            sending.cancel()
            await run.attempt(sending)
            await client.track_many(events())
            await run.attempt(client.flush(0.0))
            stalled.clear()
            await stalled.wait()
            # Some programs cancel all tasks when they shut down, even in the middle of a request.
            for task in asyncio.all_tasks():
                if "Dispatcher" in repr(task):
                    task.cancel()
                    await run.attempt(task)
            await client.track_many(events())


async def _no_connection(run: Run, authority: trustme.CA) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    await run.against(f"http://127.0.0.1:{port}/1.0/")
    await run.against("https://nowhere.invalid/1.0/", timeout=2.0)
    async with h2_server(trustme.CA()) as (_, url):
        await run.against(url)
    async with h2_server(authority) as (server, url):
        await run.against(url, http2=True)
        run.met |= {"HTTP/2"} if server.paths else set()
    async with raw_server() as proxy:
        proxy.always(answer(403))
        async with httpx.AsyncClient(proxy=proxy.url.removesuffix("/1.0/")) as own:
            await run.against("https://shop.invalid/1.0/", http_client=own)
        run.met |= {f"proxy: {request.method} {request.target}" for request in proxy.arrived}


async def _others_fault(run: Run) -> None:
    class Broken(LocalLimiter):
        async def acquire(self) -> Any:
            raise RuntimeError("the limiter's own words")

    def hook(_: object) -> Any:
        raise RuntimeError(f"no room for {PERSONAL['email']}")

    def told(events: Sequence[UndeliveredEvent]) -> object:
        return [undelivered.event for undelivered in events]

    async def late_hook(_: object) -> None:
        raise RuntimeError(f"no room for {PERSONAL['email']}")

    def unsure(_: int, body: bytes) -> bool:
        raise RuntimeError("the hook's own words", body)

    async def look(message: httpx.Request | httpx.Response) -> None:
        request = message if isinstance(message, httpx.Request) else message.request
        run.sinks.thing(message, request, request.headers)
        url = request.url
        logging.getLogger("shop").info("%s %r %s %s %s", url, url, url.copy_with(), vars(url), vars(request))

    async def refuse(message: httpx.Request) -> None:
        raise RuntimeError("the hook's own words")

    async with raw_server() as server:
        async with run.client(server.url, close_in=0.0, limiter=Broken(None), retry=ONCE) as client:
            await run.attempt(client.send(events()[0]))
            await client.track_many(events())
        async with httpx.AsyncClient(event_hooks={"request": [look], "response": [look]}) as own:
            await run.against(server.url, http_client=own)
        await run.against(server.url, http_client=own)
        async with httpx.AsyncClient(event_hooks={"request": [refuse]}) as own:
            await run.against(server.url, http_client=own)
        await run.against(server.url, before_send=hook)
        server.always(answer(400))
        await run.against(server.url, on_outcome=hook)
        await run.against(server.url, on_outcome=told)
        await run.against(server.url, on_outcome=late_hook)
        server.always(answer(401, body=KEY.encode()))
        await run.against(server.url, on_state_change=hook)
        await run.against(server.url, retry=attrs.evolve(QUICK, is_throttled=unsure))


async def _told(key: str) -> str:
    return key


async def _keys(run: Run) -> None:
    """Use clients whose `api_key` is a function: functions that return the key, and functions that fail."""
    given = iter(["an old key".replace(" ", "-")])

    def renewed() -> str:
        return next(given, KEY)

    async def fetched() -> str:
        await asyncio.sleep(0)
        return KEY

    def failing() -> str:
        raise RuntimeError(f"the vault has {KEY}, but does not give it")

    async def failing_later() -> str:
        await asyncio.sleep(0)
        raise RuntimeError(f"the vault has {KEY}, but does not give it")

    async def respond(request: Arrived, _: asyncio.StreamWriter) -> bytes:
        return answer(200 if request.query["apiKey"] == [KEY] else 401)

    async with raw_server() as server, asyncio.TaskGroup() as all_at_once:
        server.respond = respond
        sources: list[Callable[[], Any]] = [
            *(lambda: KEY, fetched, partial(_told, KEY), renewed),
            *(failing, failing_later, lambda: f"{KEY}\n", KEY.encode),
        ]
        for source in sources:
            all_at_once.create_task(run.against(server.url, api_key=source))
        async with run.client(server.url, close_in=0.1, api_key=lambda: "wrong") as client:
            await run.attempt(client.send(events()[0]))
            await client.track_many(events())


async def _emulated(run: Run) -> None:
    with emulator_process(Settings(api_key=KEY, partner_id="partner")) as emulator:
        for kind in ("reset_before", "close_after", "truncate"):
            emulator.add_faults([{"kind": kind, "times": 3}])
            await run.against(emulator.url)
        emulator.configure(api_key="another")
        await run.against(emulator.url)
        # The emulator's attributes are not collected, because one of them is the key, which tests use for clients.
        run.sinks.put(named.THINGS, str(emulator), repr(emulator))
        run.sinks.put(named.THINGS, repr(Settings(api_key=KEY)))


async def _misuse(run: Run) -> None:
    for options in (
        {"api_key": f"{KEY}\n"},
        {"api_key": KEY.encode()},
        {"partner_id": ""},
        {"base_url": f"https://shop.test/?apiKey={KEY}"},
        {"base_url": f"https://user:{KEY}@shop.test/"},
        {"base_url": f"https://[{KEY}/"},
        {"timeout": None},
        {"retry": 1},
        {"http_client": object()},
        {"batching": Batching(max_bytes=2048), "buffer": Buffer(max_bytes=1024)},
    ):
        await run.attempt(_made(options))
    os.environ["RETAILROCKET_API_KEY"] = KEY
    os.environ.pop("RETAILROCKET_PARTNER_ID", None)
    await run.attempt(_from_env())
    for field, value in PERSONAL.items():
        await run.attempt(_wrong_event(field, value))
    buffer, batching = Buffer(max_events=1), Batching(max_events=1, max_in_flight=1)
    # The listener accepts connections and never answers, so the buffer stays full.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        async with run.client(url, close_in=0.0, buffer=buffer, batching=batching) as client:
            await _full_buffer(run, client)
    await run.attempt(client.track(events()[0]))
    logging.getLogger("shop").info("%r %s", client, client.stats())


async def _full_buffer(run: Run, client: AsyncTrackingClient) -> None:
    await run.attempt(_tracked_now(client))
    await run.attempt(_tracked_now(client))
    await run.attempt(asyncio.to_thread(asyncio.run, client.flush()))
    handle = client.threadsafe()
    run.sinks.thing(handle)
    await run.attempt(asyncio.to_thread(handle.track_many, events(), timeout=0.1))
    await run.attempt(_tracked_from(handle))


async def _made(options: dict[str, Any]) -> None:
    given = {"api_key": KEY, "partner_id": "partner", **options}
    try:
        AsyncTrackingClient(**given)
    finally:
        # Tracebacks also show the variables of this function. They are cleared, because only the package is under test.
        given.clear()
        options.clear()


async def _from_env() -> None:
    AsyncTrackingClient.from_env()


async def _wrong_event(field: str, value: str) -> None:
    del field
    SetContact(session_external_id=f"{value}!", contact_external_id=f"{value}!")


async def _tracked_from(handle: ThreadsafeHandle) -> None:
    # A call from the thread of the event loop is refused.
    handle.track(events()[0])


async def _tracked_now(client: AsyncTrackingClient) -> None:
    client.track_nowait(events()[0])


async def survive(run: Run, authority: trustme.CA, folder: Path) -> None:
    """Use clients and commands until every kind of failure has happened."""
    run.sinks.watch_loop()
    async with asyncio.TaskGroup() as both:
        both.create_task(every_command(run, folder))
        for scenario in (_statuses, _broken, _others_fault, _keys, _emulated, _misuse):
            await scenario(run)
        await _no_connection(run, authority)


async def leak(run: Run) -> None:
    """Write the key to every sink (a place that a secret may reach), as a careless program would."""
    sinks, loop = run.sinks, asyncio.get_running_loop()
    sinks.watch_loop()
    query = f"apiKey={quote(KEY, safe='')}"
    async with raw_server() as server, httpx.AsyncClient() as careless:
        server.always(answer(401))
        await run.attempt(_careless(careless, f"{server.url}view?{query}"))
        await python(run, ("-m", "retailrocket_async", "check", f"--{KEY}"), {})
    sinks.error(RetailRocketError(f"the key {KEY} is wrong"))
    sinks.thing(httpx.Request("POST", f"https://shop.test/?{query}"))
    for value in PERSONAL.values():
        logging.getLogger("shop").info("a visitor: %s", value)
    warnings.warn(f"the key {KEY} is old", stacklevel=1)
    loop.call_exception_handler({"message": f"nobody awaited the request with the key {KEY}"})
    sinks.meter.create_counter("requests").add(1, {"key": KEY})
    sending = asyncio.create_task(asyncio.sleep(0), name=f"send with {KEY}")
    sinks.everything_alive()
    await sending
    # The file name of this code contains the key, as if a careless program used the key to name a cached file.
    exec(compile("sinks.crash()", f"answer to {KEY}", "exec"), {"sinks": sinks})
    sys.stderr.write(f"the key is {KEY}\n")


async def _careless(client: httpx.AsyncClient, url: str) -> None:
    try:
        (await client.post(url)).raise_for_status()
    except httpx.HTTPError:
        logging.getLogger("shop").exception("the request failed")
        raise


def main() -> None:
    """Run the program, and write the texts of all sinks to the file."""
    what, file = sys.argv[1:]
    sinks = Sinks()
    run = Run(sinks)
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as name, sinks.attached():
        folder = Path(name)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
        asyncio.run(survive(run, authority, folder) if what == "survive" else leak(run))
    told = {"met": sorted(run.met), "texts": {sink: sorted(texts) for sink, texts in sinks.texts.items()}}
    Path(file).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
