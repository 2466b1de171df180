"""Each test checks one place in which the API key or visitors' data was once found to leak."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import signal
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retailrocket_async import AsyncTrackingClient, ConfigurationError, RetryPolicy, View
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.reply import Reply
from retailrocket_async._http.transport import HttpxTransport
from retailrocket_async.emulator import Settings
from tests.support.internals import is_of_the_client
from tests.support.raw_server import OK, Arrived, answer, raw_server
from tests.support.sinks import KEY, attributes, found_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

EVENT = View(session_external_id="visitor5ba1f2d3", product_id=1)


def _told_with_variables(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


async def _told_by_tasks(work: Coroutine[Any, Any, Any]) -> tuple[Any, set[str]]:
    """Await `work`; return its result, and the texts that all tasks print of themselves at every step meanwhile."""
    working, reported = asyncio.create_task(work), set[str]()
    while not working.done():
        reported |= {repr(task) for task in asyncio.all_tasks()}
        await asyncio.sleep(0)
    return working.result(), reported


class _Held(httpx.AsyncBaseTransport):
    """Holds a request with its target in a local variable, as a connection that writes does, until `end` is called."""

    def __init__(self, end: Callable[[], Any]) -> None:
        self.written = asyncio.Event()
        self._end = end

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target = request.url.raw_path
        self.written.set()
        try:
            int(target)
        except ValueError:
            # An error that is raised from here on has this ValueError as its context.
            await self._end()
        return httpx.Response(200)


async def test_a_cancelled_request_leaves_no_target_in_its_frames() -> None:
    """If a request is cancelled, the cancellation's frames do not contain the key."""
    held = _Held(asyncio.get_running_loop().create_future)
    async with httpx.AsyncClient(transport=held) as own:
        transport = HttpxTransport(Credentials(KEY, "partner"), base_url="http://127.0.0.1:9/", http_client=own)
        posting = asyncio.create_task(transport.post("view", b"{}", on_sent=lambda: None))
        await held.written.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await posting

    assert set() == found_in(_told_with_variables(caught.value), KEY)
    assert posting.cancelled()


def test_ctrl_c_leaves_no_target_in_its_frames() -> None:
    """If Ctrl-C interrupts a request, the KeyboardInterrupt's frames do not contain the key."""

    async def interrupt() -> None:
        # The first Ctrl-C cancels the main task, see `asyncio.Runner.run`.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    async def post() -> None:
        async with httpx.AsyncClient(transport=_Held(interrupt)) as own:
            transport = HttpxTransport(Credentials(KEY, "partner"), base_url="http://127.0.0.1:9/", http_client=own)
            await transport.post("view", b"{}", on_sent=lambda: None)

    with pytest.raises(KeyboardInterrupt) as caught:
        asyncio.run(post())

    assert set() == found_in(_told_with_variables(caught.value), KEY)


def test_a_missing_variable_leaves_the_key_in_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `from_env` finds no shop id, no frame of its error contains the key, which was read before."""
    monkeypatch.setenv("RETAILROCKET_API_KEY", KEY)
    monkeypatch.delenv("RETAILROCKET_PARTNER_ID", raising=False)
    with pytest.raises(ConfigurationError, match="RETAILROCKET_PARTNER_ID") as caught:
        AsyncTrackingClient.from_env()

    assert set() == found_in(_told_with_variables(caught.value), KEY)


@pytest.mark.parametrize(
    "before_host", ["https://shop.test/?apiKey=", "https://user:", "https://shop.test:", "ftp://shop.test/"]
)
def test_an_address_with_the_key_in_it_is_in_no_frame(before_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the address contains the key, it is refused, and the error has no frame with the key and no chained error."""
    monkeypatch.setenv("RETAILROCKET_API_KEY", "another")
    monkeypatch.setenv("RETAILROCKET_PARTNER_ID", "partner")
    monkeypatch.setenv("RETAILROCKET_BASE_URL", f"{before_host}{KEY}@shop.test/")
    with pytest.raises(ConfigurationError) as caught:
        AsyncTrackingClient.from_env()

    assert set() == found_in(_told_with_variables(caught.value), KEY)
    assert (None, None) == (caught.value.__cause__, caught.value.__context__)


async def test_no_attribute_holds_the_key_in_clear() -> None:
    """If a request is under way, no object of the package, nor a copy, prints the key in its attributes."""
    arrived, seen = asyncio.Event(), []

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        arrived.set()
        await asyncio.get_running_loop().create_future()
        return OK

    async def look(request: httpx.Request) -> None:
        seen.append(request.url)

    async with raw_server() as server, httpx.AsyncClient(event_hooks={"request": [look]}) as own:
        server.respond = stall
        client = AsyncTrackingClient(KEY, "partner", base_url=server.url, http_client=own)
        await client.track(EVENT)
        await arrived.wait()
        ours = [thing for thing in gc.get_objects() if is_of_the_client(thing)]
        reported = [repr(thing) + repr(getattr(thing, "__dict__", "")) for thing in [*ours, *seen]]
        # Tools that inspect objects read properties, too. URLs are excluded: connections read the key from `raw_path`.
        reported += [attributes(thing) for thing in ours if not isinstance(thing, httpx.URL)]
        await client.aclose(timeout=0)

    assert {"Credentials", "KeyedURL", "HttpxTransport"} <= {type(thing).__name__ for thing in ours}
    assert set() == {place for text in reported for place in found_in(text, KEY)}
    assert set() == found_in(repr(copy.copy(seen[0])), KEY)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(seen[0])


async def test_an_answer_that_repeats_the_request_is_not_kept() -> None:
    """If an answer's body contains the request, the body is not kept after `is_throttled` has seen it."""
    asked: list[bytes] = []
    answered = asyncio.Event()

    def throttled(_: int, body: bytes) -> bool:
        asked.append(body)
        answered.set()
        return False

    async def echo(request: Arrived, _: asyncio.StreamWriter) -> bytes:
        return answer(503, body=request.target.encode())

    retry = RetryPolicy(initial_backoff=30, max_backoff=30, is_throttled=throttled)
    async with raw_server() as server:
        server.respond = echo
        client = AsyncTrackingClient(KEY, "partner", base_url=server.url, retry=retry)
        await client.track(EVENT)
        await answered.wait()
        # `type()` is used because other tests leave objects behind that raise when asked for their class.
        bodies = [thing.body for thing in gc.get_objects() if type(thing) is Reply]
        await client.aclose(timeout=0)

    assert set() != found_in(repr(asked), KEY)
    assert b"" in bodies
    assert set() == found_in(repr(bodies), KEY)


@pytest.mark.parametrize("kind", ["function", "coroutine function", "partial", "failing function"])
async def test_no_task_prints_the_key_that_a_function_has(kind: str) -> None:
    """If the client asks for a key, no task, nor an object that it awaits, prints the key at any step of the loop."""

    async def fetched() -> str:
        await asyncio.sleep(0)
        return KEY

    async def reported(key: str) -> str:
        return key

    def failing() -> str:
        raise RuntimeError(f"the vault has {KEY}, but does not give it")

    sources: dict[str, Callable[[], Any]] = {
        "failing function": failing,
        "function": lambda: KEY,
        "coroutine function": fetched,
        "partial": partial(reported, KEY),
    }
    credentials = Credentials(sources[kind], "partner")
    assert set() == found_in(attributes(credentials), KEY)
    failure, seen = await _told_by_tasks(credentials.ready())

    assert failure == ("RuntimeError" if kind == "failing function" else None)
    assert any("Credentials._ask_now" in text for text in seen)
    assert set() == {place for text in seen for place in found_in(text, KEY)}


async def test_a_hook_is_printed_by_no_task() -> None:
    """If a hook runs in a thread, no task prints the hook's error or result."""
    calls: list[int] = []

    def hook(events: Any) -> Any:
        calls.append(len(events))
        if len(calls) == 1:
            raise RuntimeError(events[0].envelope)
        return [undelivered.event for undelivered in events]

    async def use(client: AsyncTrackingClient) -> int:
        async with client:
            for _ in range(2):
                await (await client.track(EVENT))
        return client.stats().hook_errors

    async with raw_server() as server:
        server.always(answer(400))
        client = AsyncTrackingClient("key", "partner", base_url=server.url, on_outcome=hook)
        errors, seen = await _told_by_tasks(use(client))

    assert ([1, 1], 1) == (calls, errors)
    assert any("Hooks._run" in text for text in seen)
    assert [] == [text for text in seen if EVENT.session_external_id in text]


def test_the_emulators_settings_print_no_key() -> None:
    """If the emulator's settings contain a key, which may be a real one, their text does not show it."""
    assert set() == found_in(repr(Settings(api_key=KEY)), KEY)
