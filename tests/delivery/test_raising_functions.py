"""If a hook or key function raises any `BaseException`, it is counted and logged by type name, without further harm."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import AsyncTrackingClient, Batching, Delivered, RetryPolicy
from retailrocket_async.testing import RecordingClient
from tests.support.fakes import event
from tests.support.internals import engine_of
from tests.support.raw_server import raw_server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

TEXT = "visitor-4711"
"""The message of each raised error, which must not be printed anywhere."""


class Odd(BaseException):
    """A `BaseException` that is not an `Exception`, and whose `with_traceback` raises."""

    def with_traceback(self, _: object) -> Any:
        """Raise another `Odd` instead of setting the traceback."""
        raise Odd(TEXT)


ERRORS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Odd, StopIteration, RecursionError]


class Awaited:
    """An awaitable that raises this error when it is awaited."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __await__(self) -> Generator[None, None, None]:
        raise self._error(TEXT)


class Looked:
    """An object that raises this error when any of its attributes is read."""

    def __init__(self, error: type[BaseException]) -> None:
        object.__setattr__(self, "_raises", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "_raises")(TEXT)


def _plain(error: type[BaseException]) -> Callable[..., object]:
    def function(*_: object) -> None:
        raise error(TEXT)

    return function


def _deep(error: type[BaseException]) -> Callable[..., object]:
    def function(*_: object, left: int = 800) -> None:
        if not left:
            raise error(TEXT)
        function(left=left - 1)

    return function


def _coroutine(error: type[BaseException]) -> Callable[..., object]:
    async def function(*_: object) -> None:
        await asyncio.sleep(0)
        raise error(TEXT)

    return function


def _at_once(error: type[BaseException]) -> Callable[..., object]:
    async def function(*_: object) -> None:
        raise error(TEXT)

    return function


def _returned(error: type[BaseException]) -> Callable[..., object]:
    coroutine = _coroutine(error)
    return lambda *_: coroutine()


def _task(error: type[BaseException]) -> Callable[..., object]:
    async def function(*_: object) -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error(TEXT))
        await future

    return function


WAYS: dict[str, Callable[[type[BaseException]], Callable[..., object]]] = {
    "plain": _plain,
    "deep": _deep,
    "coroutine": _coroutine,
    "at once": _at_once,
    "returned": _returned,
    "awaited": lambda error: lambda *_: Awaited(error),
    "looked at": lambda error: lambda *_: Looked(error),
    "a future's": _task,
}


def _impossible(way: str, error: type[BaseException]) -> bool:
    """Return True if Python rules the case out: a future accepts no StopIteration and does not store interrupts."""
    return way == "a future's" and error in (StopIteration, KeyboardInterrupt)


CASES = [
    pytest.param(way, error, id=f"{error.__name__} {way}")
    for way in WAYS
    for error in ERRORS
    if not _impossible(way, error)
]


@pytest.fixture
async def reported() -> list[dict[str, Any]]:
    """Record the contexts that asyncio's exception handler gets, and return their list."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


def _said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    # Only these words are compared: reading an attribute may turn one error into another type.
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


@pytest.mark.parametrize(("way", "error"), CASES)
async def test_a_hook_may_raise_anything(
    way: str, error: type[BaseException], caplog: pytest.LogCaptureFixture, reported: list[dict[str, Any]]
) -> None:
    """If a hook raises any error, each is counted, the first is logged by its type's name, and delivery continues."""
    caplog.set_level(logging.DEBUG)
    hook = WAYS[way](error)
    client = RecordingClient(batching=Batching(linger=0.0), on_outcome=hook)
    async with client:
        for number in range(3):
            client.fail_with(status=400)
            await (await client.track(event(number)))
            await engine_of(client)._ledger.hooks.drained()
        outcome = await (await client.track(event(9)))
    gc.collect()

    assert isinstance(outcome, Delivered)
    assert 3 == client.stats().hook_errors
    assert 1 == len(_said(caplog, "on_outcome raised"))
    assert [] == reported
    assert TEXT not in caplog.text


@pytest.mark.parametrize(("way", "error"), CASES)
async def test_a_key_function_may_raise_anything(
    way: str, error: type[BaseException], caplog: pytest.LogCaptureFixture, reported: list[dict[str, Any]]
) -> None:
    """If the key function raises any error, it is logged once by its type's name; a later key delivers the event."""
    caplog.set_level(logging.DEBUG)
    raising = WAYS[way](error)
    asked = 0

    def api_key() -> Any:
        nonlocal asked
        asked += 1
        return raising() if asked < 3 else "key"

    async def later() -> Any:
        return await raising() if asked_again() < 3 else "key"  # type: ignore[misc]

    def asked_again() -> int:
        nonlocal asked
        asked += 1
        return asked

    function: Any = later if way in ("coroutine", "at once", "a future's") else api_key
    retry = RetryPolicy(initial_backoff=0.001, max_backoff=0.001)
    async with raw_server() as server:
        options: dict[str, Any] = {"base_url": server.url, "retry": retry, "batching": Batching(linger=0.0)}
        async with AsyncTrackingClient(function, "partner", **options) as client:
            outcome = await (await client.track(event(1)))
    gc.collect()

    assert isinstance(outcome, Delivered)
    assert 3 == asked
    assert 1 == len(_said(caplog, "the api_key function failed: "))
    assert [] == reported
    assert TEXT not in caplog.text


# --- exceptions that must pass ---


def _handled(number: int, _: object) -> None:
    raise SystemExit(number)


@pytest.mark.parametrize(
    ("handler", "error"), [(signal.default_int_handler, KeyboardInterrupt), (_handled, SystemExit)], ids=["C", "Python"]
)
@pytest.mark.parametrize("asks", ["hook", "key"])
def test_a_signal_ends_the_loop(handler: Any, error: type[BaseException], asks: str) -> None:
    """If Ctrl-C or a signal handler raises while a hook or a key function runs, the loop ends as usual."""
    loop = asyncio.new_event_loop()

    async def interrupted(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        for _turn in range(1000):
            await asyncio.sleep(0)
        return "key"

    async def main() -> None:
        if asks == "hook":
            client: AsyncTrackingClient = RecordingClient(batching=Batching(linger=0.0), on_outcome=interrupted)
            client.fail_with(status=400)  # type: ignore[attr-defined]
        else:
            options: dict[str, Any] = {"base_url": "http://127.0.0.1:9/", "batching": Batching(linger=0.0)}
            client = AsyncTrackingClient(interrupted, "partner", **options)
        clients.append(client)
        await client.track(event(1))
        await asyncio.sleep(60)

    clients: list[AsyncTrackingClient] = []
    before = signal.signal(signal.SIGINT, handler)
    running = loop.create_task(main())
    try:
        with pytest.raises(error):
            loop.run_until_complete(running)
        running.cancel()
        loop.run_until_complete(asyncio.wait({running}))
        loop.run_until_complete(clients[0].aclose(0.0))
        loop.run_until_complete(asyncio.sleep(0.01))
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()

    assert 0 == clients[0].stats().hook_errors


@pytest.mark.filterwarnings("ignore:unclosed <AsyncTrackingClient:ResourceWarning")
def test_a_loop_that_ends_in_a_hook_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    """If a coroutine hook's loop was closed, the coroutine is closed as well, and no hook error is counted."""
    closed: list[str] = []

    async def hook(_: object) -> None:
        try:
            await asyncio.sleep(3600)
        except GeneratorExit:
            closed.append("hook")
            raise

    async def main() -> None:
        client = RecordingClient(batching=Batching(linger=0.0), on_outcome=hook)
        client.fail_with(status=400)
        await (await client.track(event(1)))
        await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, __: None)
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()

    assert ["hook"] == closed
    assert [] == _said(caplog, "raised")
