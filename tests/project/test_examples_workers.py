"""The workers of examples/ track every order of a queue, in memory or in Redis, even if SIGTERM ends them."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from retailrocket_async import AsyncTrackingClient, Batching
from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process
from tests.support.example_process import ended, example
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ORDERS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[EmulatorProcess]:
    """Provide an emulator in its own process."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: EmulatorProcess) -> EmulatorProcess:
    """Remove all recorded events from the emulator, and return it."""
    server.reset()
    return server


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis server, which all workers share."""
    with RedisServer() as server:
        yield server


def order(number: int) -> dict[str, Any]:
    """Return a message about a paid order with two products."""
    lines = [{"product_id": number, "quantity": 1, "price": "9.90"}, {"product_id": 777, "quantity": 2, "price": "1"}]
    return {"visitor": f"visitor{number}", "transaction": f"T-{number}", "lines": lines}


def recorded(emulator: EmulatorProcess) -> dict[str, list[tuple[int, float]]]:
    """Return the recorded product ids and prices by order number."""
    orders: dict[str, list[tuple[int, float]]] = {}
    for event in emulator.events("order"):
        fields = event["fields"]
        assert fields["sessionExternalId"] == fields["transaction"].replace("T-", "visitor")
        orders.setdefault(fields["transaction"], []).append((fields["productId"], fields["price"]))
    return orders


def expected(count: int = ORDERS) -> dict[str, list[tuple[int, float]]]:
    """Return the product ids and prices that must be recorded for `count` orders, by order number."""
    return {f"T-{number}": [(number, 9.9), (777, 1)] for number in range(1, count + 1)}


def client_of(emulator: EmulatorProcess) -> AsyncTrackingClient:
    """Return a client that sends nothing before it is closed."""
    key, shop = Settings().api_key, Settings().partner_id
    return AsyncTrackingClient(key, shop, base_url=emulator.url, batching=Batching(linger=600))


async def test_faststream_in_memory(emulator: EmulatorProcess) -> None:
    """If FastStream handles an order, the lifespan's client delivers it when the application ends."""
    from faststream.redis import TestRedisBroker

    from examples.workers import faststream_worker
    from examples.workers.orders import rocket

    app = faststream_worker.app
    with rocket.using(client_of(emulator)):
        async with TestRedisBroker(faststream_worker.broker) as broker, faststream_worker.lifespan(app.context):
            await broker.publish(order(1), list=faststream_worker.QUEUE)
            assert recorded(emulator) == {}

    assert recorded(emulator) == expected(1)


async def test_taskiq_in_memory(emulator: EmulatorProcess) -> None:
    """If Taskiq runs a task, the worker's client delivers the order when the worker ends."""
    from taskiq import InMemoryBroker

    from examples.workers import taskiq_worker
    from examples.workers.orders import rocket

    broker = InMemoryBroker(await_inplace=True)
    broker.event_handlers = taskiq_worker.broker.event_handlers
    task = broker.register_task(taskiq_worker.paid.original_func, task_name="paid")
    with rocket.using(client_of(emulator)):
        await broker.startup()
        result = await (await task.kiq(**order(1))).wait_result()
        assert not result.is_err, result.error
        assert recorded(emulator) == {}
        await broker.shutdown()

    assert recorded(emulator) == expected(1)


@pytest.mark.needs_server("redis-server")
async def test_taskiq_on_redis(
    emulator: EmulatorProcess, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a Taskiq worker reads orders from a real Redis, it tracks all orders, and delivers them when it ends."""
    from taskiq.api import run_receiver_task

    from examples.workers.orders import rocket

    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.delitem(sys.modules, "examples.workers.taskiq_worker", raising=False)
    taskiq_worker = importlib.import_module("examples.workers.taskiq_worker")
    client = client_of(emulator)
    with rocket.using(client):
        broker = taskiq_worker.broker
        broker.is_worker_process = True
        working = asyncio.create_task(run_receiver_task(broker, run_startup=True))
        for number in range(1, ORDERS + 1):
            await taskiq_worker.paid.kiq(**order(number))
        async with asyncio.timeout(30):
            while client.stats().tracked < 2 * ORDERS:  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.wait({working})
        await broker.shutdown()

    assert recorded(emulator) == expected()


async def push(redis_server: RedisServer) -> None:
    """Push all orders to the Redis list, and return when workers have taken all of them."""
    async with Redis.from_url(redis_server.url) as redis, asyncio.timeout(30):
        for number in range(1, ORDERS + 1):
            await redis.lpush("paid-orders", json.dumps(order(number)))
        while await redis.llen("paid-orders"):  # noqa: ASYNC110 - Redis has no event for this
            await asyncio.sleep(0.01)


def until_ready(process: subprocess.Popen[str]) -> None:
    """Read the worker's output until the worker says that it is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "ready" in line:
            return
    pytest.fail("the worker has ended:\n" + "".join(lines))


@pytest.mark.endurance
@pytest.mark.needs_server("redis-server")
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
@pytest.mark.parametrize("worker", ["plain", "faststream_worker"])
async def test_a_signal_loses_no_order(worker: str, emulator: EmulatorProcess, redis_server: RedisServer) -> None:
    """If SIGTERM ends a worker after it has taken the last order, every order is recorded once."""
    with example(f"examples.workers.{worker}", emulator=emulator, REDIS_URL=redis_server.url) as process:
        until_ready(process)
        await push(redis_server)
        status, printed = ended(process)

    assert status == 0, printed
    assert "Traceback" not in printed
    assert recorded(emulator) == expected()
