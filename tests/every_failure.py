"""A program that meets every failure there is, with all sinks attached, or leaks the key into each on purpose.

``python -m tests.every_failure survive|leak FILE`` writes what the sinks collected, and what was met, as JSON. In a
process of its own, since what instruments the process cannot all be undone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import warnings
from contextlib import asynccontextmanager, suppress
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
    RateLimit,
    RetailRocketError,
    RetryPolicy,
    Search,
    SetContact,
    ThreadsafeHandle,
    UndeliveredEvent,
    View,
)
from retailrocket_async.emulator import Settings, emulator_process
from tests import sinks as named
from tests.h2_server import h2_server
from tests.raw_server import Arrived, answer, raw_server, reset
from tests.sinks import KEY, PERSONAL, Sinks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

QUICK = RetryPolicy(max_attempts=2, initial_backoff=0.0, max_backoff=0.0, max_halt=0.0)
ONCE = attrs.evolve(QUICK, max_attempts=1)

# Commands in a row, as to start each in a process of its own takes a second.
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

# A defect in the middle of `send`, for one who has variables printed with tracebacks.
CRASH = """
import rich.traceback
rich.traceback.install(show_locals=True, locals_max_string=None, width=1000)
from retailrocket_async.cli import _delivery, main
_delivery.Reader.stop = None
main()
"""

VISITOR = PERSONAL["session_external_id"]


def _events() -> list[Any]:
    contact = {name: PERSONAL[name] for name in ("contact_external_id", "email", "phone")}
    return [
        View(session_external_id=VISITOR, product_id=1),
        Search(session_external_id=VISITOR, search_phrase=PERSONAL["search_phrase"]),
        SetContact(session_external_id=VISITOR, custom_data={"likes": PERSONAL["custom_data"]}, **contact),
    ]


class Run:
    """One run: the sinks, and the failures that were met."""

    def __init__(self, sinks: Sinks) -> None:
        self.sinks = sinks
        self.met: set[str] = set()

    async def attempt(self, action: Awaitable[object]) -> None:
        """Await something that may fail, and keep what is told of the failure."""
        try:
            self.sinks.thing(await action)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - every one is of interest
            self.met.add(type(error).__name__)
            self.sinks.error(error)

    @asynccontextmanager
    async def client(self, url: str, close_in: float = 5.0, **options: Any) -> AsyncIterator[AsyncTrackingClient]:
        """Make a client, and keep what it tells at its end."""
        options = {"retry": QUICK, "rate_limit": None, **options}
        client = AsyncTrackingClient(options.pop("api_key", KEY), "partner", base_url=url, **options)
        self.sinks.thing(client, *(option for option in options.values() if not callable(option)))
        try:
            yield client
        finally:
            self.sinks.everything_alive()
            report = await client.aclose(close_in)
            self.sinks.thing(client, report, report.stats, *report.undelivered)
            self.met |= {str(way) for way in report.stats.requests_by_status}

    async def use(self, client: AsyncTrackingClient) -> None:
        """Send in every way."""
        await self.attempt(client.send(_events()[0]))
        await self.attempt(client.send_batch(_events()))
        *_, receipt = await client.track_many(_events())
        await self.attempt(receipt.delivered())
        self.sinks.thing(receipt, receipt.outcome)
        self.met.add((getattr(receipt.outcome, "failure", None) or "").partition(":")[0])

    async def against(self, url: str, **options: Any) -> None:
        """Use a client of this address."""
        async with self.client(url, **options) as client:
            await self.use(client)


async def _statuses(run: Run) -> None:
    async with raw_server() as server, raw_server() as elsewhere:

        async def echo(request: Arrived, _: asyncio.StreamWriter) -> bytes:
            headers = f"Location: {elsewhere.url}{request.target}", "Retry-After: 0"
            return answer(_status_in(request), *headers, body=request.target.encode() + request.body)

        server.respond = echo
        async with httpx.AsyncClient(follow_redirects=True) as own, asyncio.TaskGroup() as all_at_once:
            for status in (200, 301, 303, 307, 400, 401, 403, 404, 408, 413, 500, 501):
                all_at_once.create_task(run.against(f"{server.url}{status}/"))
            for status in (200, 307, 401):
                all_at_once.create_task(run.against(f"{server.url}{status}/", http_client=own))
        # Once: every further one would have to wait for longer.
        async with run.client(f"{server.url}429/", retry=ONCE) as client:
            await run.attempt(client.send(_events()[0]))
        if elsewhere.connections:
            run.met.add("followed a redirect")


def _status_in(request: Arrived) -> int:
    """Return the status that the base URL of the request asks for."""
    return int(request.path.split("/")[-2])


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
    # The last server of the caller stalls no more; one that does.
    async with raw_server() as server:

        async def stall(_: Arrived, __: asyncio.StreamWriter) -> None:
            stalled.set()
            await asyncio.get_running_loop().create_future()

        server.respond = stall
        async with run.client(server.url, close_in=0.0) as client:
            stalled.clear()
            sending = asyncio.create_task(client.send(_events()[0]))
            await stalled.wait()
            run.sinks.everything_alive()
            sending.cancel()
            await run.attempt(sending)
            await client.track_many(_events())
            await run.attempt(client.flush(0.0))
            stalled.clear()
            await stalled.wait()
            # As some shutdowns do: everything is cancelled, in mid-request.
            for task in asyncio.all_tasks():
                if "Dispatcher" in repr(task):
                    task.cancel()
                    await run.attempt(task)
            await client.track_many(_events())


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
            await run.attempt(client.send(_events()[0]))
            await client.track_many(_events())
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
    """Have the key given by functions of all kinds, good ones and bad ones."""
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
            await run.attempt(client.send(_events()[0]))
            await client.track_many(_events())


async def _emulated(run: Run) -> None:
    with emulator_process(Settings(api_key=KEY, partner_id="partner")) as emulator:
        for kind in ("reset_before", "close_after", "truncate"):
            emulator.add_faults([{"kind": kind, "times": 3}])
            await run.against(emulator.url)
        emulator.configure(api_key="another")
        await run.against(emulator.url)
        run.sinks.thing(emulator)
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
    # Permits for nobody but the first, so that the buffer stays full.
    limits = {"buffer": buffer, "batching": batching, "rate_limit": RateLimit(requests=1, per=600.0)}
    async with run.client("http://127.0.0.1:9/", close_in=0.0, **limits) as client:
        with suppress(RetailRocketError):
            for _ in range(3):
                client.track_nowait(_events()[0])
        await run.attempt(_tracked_now(client))
        await run.attempt(asyncio.to_thread(asyncio.run, client.flush()))
        handle = client.threadsafe()
        run.sinks.thing(handle)
        await run.attempt(asyncio.to_thread(handle.track_many, _events(), timeout=0.1))
        await run.attempt(_tracked_from(handle))
    await run.attempt(client.track(_events()[0]))
    logging.getLogger("shop").info("%r %s", client, client.stats())


async def _made(options: dict[str, Any]) -> None:
    given = {"api_key": KEY, "partner_id": "partner", **options}
    try:
        AsyncTrackingClient(**given)
    finally:
        # This frame is a caller's, which has the key; the package's frames are what is looked at.
        given.clear()
        options.clear()


async def _from_env() -> None:
    AsyncTrackingClient.from_env()


async def _wrong_event(field: str, value: str) -> None:
    del field
    SetContact(session_external_id=f"{value}!", contact_external_id=f"{value}!")


async def _tracked_from(handle: ThreadsafeHandle) -> None:
    # From the loop's own thread, which is refused.
    handle.track(_events()[0])


async def _tracked_now(client: AsyncTrackingClient) -> None:
    client.track_nowait(_events()[0])


async def _commands(run: Run, folder: Path) -> None:
    events = folder / "events.jsonl"
    await asyncio.to_thread(events.write_bytes, b'{"view":{"sessionExternalId":"a1","productId":1}}\noops\n')
    stalled = asyncio.Event()

    async def respond(request: Arrived, _: asyncio.StreamWriter) -> bytes:
        if (status := _status_in(request)) == 0:
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
        out, _ = await _process(run, ("-c", IN_A_ROW), _environment(url), "\n".join(lines).encode())
        run.met |= {line.removeprefix("ended: ") for line in out.splitlines() if line.startswith("ended: ")}
        out, status = await _process(run, ("-c", CRASH, *send), _environment(f"{url}200/"))
        run.met |= {f"crashed: {status}"} if "NoneType" in out else set()
        stalled.clear()
        _, status = await _process(
            run, ("-m", "retailrocket_async", *send), _environment(f"{url}0/"), interrupt=stalled
        )
        run.met.add(f"interrupted: {status}")


def _environment(url: str, key: str = KEY) -> dict[str, str]:
    given = {"RETAILROCKET_API_KEY": key, "RETAILROCKET_PARTNER_ID": "partner", "RETAILROCKET_BASE_URL": url}
    # As talkative as Python gets.
    return {"PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "default", **given}


async def _process(
    run: Run,
    arguments: Sequence[str],
    given: dict[str, str],
    stdin: bytes = b"",
    interrupt: asyncio.Event | None = None,
) -> tuple[str, int | None]:
    """Run Python, keep what it says, and return that and its exit status."""
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
    run.sinks.put(named.COMMANDS, out.decode())
    return out.decode(), process.returncode


async def survive(run: Run, authority: trustme.CA, folder: Path) -> None:
    """Meet every failure."""
    run.sinks.watch_loop()
    async with asyncio.TaskGroup() as both:
        both.create_task(_commands(run, folder))
        for scenario in (_statuses, _broken, _others_fault, _keys, _emulated, _misuse):
            await scenario(run)
        await _no_connection(run, authority)


async def leak(run: Run) -> None:
    """Put the key in every sink, each in the way in which a careless program would."""
    sinks, loop = run.sinks, asyncio.get_running_loop()
    sinks.watch_loop()
    query = f"apiKey={quote(KEY, safe='')}"
    async with raw_server() as server, httpx.AsyncClient() as careless:
        server.always(answer(401))
        await run.attempt(_careless(careless, f"{server.url}view?{query}"))
        await _process(run, ("-m", "retailrocket_async", "check", f"--{KEY}"), {})
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
    # A file whose name holds the key, as a cache of answers may have one.
    exec(compile("sinks.crash()", f"answer to {KEY}", "exec"), {"sinks": sinks})
    sys.stderr.write(f"the key is {KEY}\n")


async def _careless(client: httpx.AsyncClient, url: str) -> None:
    try:
        (await client.post(url)).raise_for_status()
    except httpx.HTTPError:
        logging.getLogger("shop").exception("the request failed")
        raise


def main() -> None:
    """Run, and write down what the sinks have."""
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
