"""Tests of the commands `relay` (moves messages from a broker to the API) and `relay-dead` (manages dead letters)."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from retailrocket_async import ConfigurationError
from retailrocket_async.emulator import EmulatorProcess, Fault, Settings, emulator_process
from retailrocket_async.relay import RelaySettings
from tests.support.command import run_command, settings_for, started, unimported
from tests.support.kafka_server import INSTALLED, kafka_server
from tests.support.redis_server import RedisServer, free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Generator, Iterator

pytestmark = [
    pytest.mark.needs_server("redis-server"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]

PASSWORD = "s3cretpassw0rd"
KEY = "dev-api-key"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Run one Redis server with a password, which all tests of this module share."""
    with RedisServer("--requirepass", PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    """Run one emulator of the API, without a rate limit, which all tests of this module share."""
    with emulator_process(Settings(limit=None)) as emulator:
        yield emulator


class Service:
    """An empty Redis database and an empty emulator for one test, and settings with which the commands use both.

    Attributes:
        env: the environment variables for the commands: addresses, key and shop.
    """

    def __init__(self, server: RedisServer, emulator: EmulatorProcess) -> None:
        from redis import Redis

        self.server = server
        self.emulator = emulator
        self.redis: Any = Redis(port=server.port, password=PASSWORD)
        self.redis.flushall()
        emulator.reset()
        self.env = {
            **settings_for(emulator),
            "RETAILROCKET_RELAY_SOURCE": f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0?stream=events",
            "RETAILROCKET_RELAY_NAME": "relay-1",
            "RETAILROCKET_RELAY_RATE": "0",
            "RETAILROCKET_RELAY_HEALTH_PORT": "0",
        }

    def publish(self, *bodies: bytes) -> None:
        """Publish one message for each body to the Redis stream `events`."""
        for body in bodies:
            self.redis.xadd("events", {"envelope": body})

    def dead(self) -> int:
        """Return the number of dead letters in Redis."""
        return int(self.redis.xlen("events:dead"))

    @contextmanager
    def relay(self, *arguments: object, **env: str) -> Generator[Process]:
        """Run the command `relay` in a process while the `with` block runs."""
        with started("relay", *arguments, env={**self.env, **env}) as process:
            yield Process(process)


class Process:
    """A running process of the command `relay`.

    Attributes:
        first: the first line of its output, which it prints when it has started.
        root: the root URL of its health endpoints.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stderr is not None
        self.first = process.stderr.readline().decode()
        found = re.search(r"health and metrics at (\S+)", self.first)
        assert found is not None, self.first + process.stderr.read().decode()
        self.root = found[1]

    def get(self, path: str) -> tuple[int, str]:
        """Send a GET request to a path of the relay's health endpoints; return the answer's status and body."""
        try:
            with urlopen(f"{self.root}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait for the process. Return its exit status and its whole output."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        # `communicate` would leave out the output that was buffered when the first line was read.
        rest = self.process.stderr.read() + self.process.stdout.read()
        return self.process.wait(60), self.first + rest.decode()


@pytest.fixture
def service(server: RedisServer, emulator: EmulatorProcess) -> Service:
    """Return the broker and the API for one test."""
    return Service(server, emulator)


def until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true; fail after 60 seconds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def views(*numbers: int) -> list[bytes]:
    """Return messages for the broker: one encoded `View` event for each product number."""
    return [b'{"view":{"sessionExternalId":"a","productId":%d}}' % number for number in numbers]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_broker_to_api(service: Service, number: int) -> None:
    """Messages published before or while the relay runs are delivered; a signal ends the relay with status 0."""
    service.publish(*views(1, 2, 3), b"junk")
    with service.relay() as relay:
        until(lambda: service.emulator.stats()["total_events"] == 3)
        service.publish(*views(4))
        until(lambda: service.emulator.stats()["total_events"] == 4)
        status, output = relay.end(number)

    assert (status, service.dead()) == (0, 1)
    assert "stopped: 4 delivered, 1 dead letters, 0 given back, 0 not settled\n" in output
    assert service.redis.xpending("events", "relay")["pending"] == 0
    assert PASSWORD not in output
    assert KEY not in output


def test_shared_limit(service: Service) -> None:
    """If `--limiter` is set, the relay asks Redis for permission before each request, and delivers all messages."""
    pytest.importorskip("retailrocket_async.redis")
    service.publish(*views(1, 2, 3))
    limiter = f"redis://:{PASSWORD}@127.0.0.1:{service.server.port}/1"
    with service.relay(RETAILROCKET_RELAY_LIMITER=limiter, RETAILROCKET_RELAY_RATE="50") as relay:
        until(lambda: service.emulator.stats()["total_events"] == 3)
        status, output = relay.end()

    from redis import Redis

    assert status == 0
    assert PASSWORD not in output
    shared: Any = Redis(port=service.server.port, password=PASSWORD, db=1)
    assert shared.dbsize() > 0


def wrong_limiter(kind: str, server: RedisServer) -> str:
    """Return the address of a Redis that cannot be used."""
    if kind == "nothing listens":
        return f"redis://127.0.0.1:{free_port()}/1"
    password = "wrongs3cret" if kind == "wrong password" else PASSWORD
    return f"redis://:{password}@127.0.0.1:{server.port}/1"


@pytest.mark.parametrize("kind", ["nothing listens", "wrong password", "a cluster's node"])
def test_a_limiter_that_was_never_reached(service: Service, kind: str) -> None:
    """If the limiter's Redis was never reached, the relay sends nothing, is unready, says why, and can be stopped."""
    service.publish(*views(1, 2, 3))
    cluster = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(free_port()))
    with RedisServer("--requirepass", PASSWORD, *cluster) as node:
        limiter = wrong_limiter(kind, node)
        with service.relay(RETAILROCKET_RELAY_LIMITER=limiter, RETAILROCKET_RELAY_RATE="50") as relay:
            assert relay.get("/readyz")[0] == 503
            until(lambda: "the limiter was never reached: " in relay.get("/readyz")[1])
            until(lambda: "retailrocket_relay_received_total 3.0" in relay.get("/metrics")[1])
            assert relay.get("/livez")[0] == 200
            time.sleep(1.0)
            status, output = relay.end()

    assert status in (0, 1)
    assert service.emulator.stats()["total_events"] == 0
    assert output.count("Redis has never answered") == 1
    assert "s3cret" not in output


def test_a_limiter_that_comes_later(service: Service) -> None:
    """When the limiter's Redis first answers, the relay gets ready and delivers; a later Redis failure is harmless."""
    service.publish(*views(1, 2, 3))
    server = RedisServer()
    options = ("--limiter-replicas", 2, "--limiter-on-unreachable", "wait")
    try:
        with service.relay(*options, RETAILROCKET_RELAY_LIMITER=server.url, RETAILROCKET_RELAY_RATE="50") as relay:
            until(lambda: "the limiter was never reached: " in relay.get("/readyz")[1])
            server.start()
            until(lambda: service.emulator.stats()["total_events"] == 3)
            until(lambda: relay.get("/readyz")[0] == 200)
            server.kill()
            assert relay.get("/readyz")[0] == 200
            assert relay.end()[0] == 0
    finally:
        server.__exit__()


def test_a_cluster(service: Service) -> None:
    """If the stream is on a Redis Cluster, the command prints one sentence and ends with status 2."""
    cluster = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(free_port()))
    with RedisServer(*cluster) as node:
        result = run_command("relay", "--source", f"{node.url}?stream=events", env=service.env)

    assert result.exit_code == 2
    assert "error: a relay does not read from a Redis Cluster" in result.stderr


@pytest.mark.skipif(not INSTALLED, reason="confluent-kafka is not installed")
def test_a_kafka_that_is_gone(service: Service) -> None:
    """If the only Kafka broker dies, the relay is unready within seconds, and SIGTERM ends the relay with 0 or 1."""
    with kafka_server() as kafka:
        kafka.create_topic("events", 1)
        kafka.create_topic("events-dead", 1)
        source = f"kafka://{kafka.bootstrap_servers}/events"
        with service.relay(RETAILROCKET_RELAY_SOURCE=source) as relay:
            until(lambda: relay.get("/readyz")[0] == 200)
            kafka.process.kill()
            kafka.process.wait()
            until(lambda: relay.get("/readyz")[0] == 503)
            assert "retailrocket_relay_connected 0.0" in relay.get("/metrics")[1]
            status, output = relay.end()

    assert status in (0, 1)
    assert "Traceback" not in output


def test_health_and_metrics(service: Service) -> None:
    """If the relay works, its endpoints report it as alive and ready, and its metrics count the delivered messages."""
    service.publish(*views(1, 2), b"junk")
    with service.relay() as relay:
        for figure in ("received_total 3.0", "in_hand 0.0", "unsettled 0.0"):
            until(lambda line=f"retailrocket_relay_{figure}\n": line in relay.get("/metrics")[1])  # type: ignore[misc]
        assert relay.get("/livez") == (200, "alive\n")
        assert relay.get("/readyz") == (200, "ready\n")
        assert relay.get("/other")[0] == 404
        _, metrics = relay.get("/metrics")
        relay.end()

    for line in (
        "retailrocket_relay_received_total 3.0",
        "retailrocket_relay_delivered_total 2.0",
        'retailrocket_relay_dead_total{reason="undecodable"} 1.0',
        "retailrocket_relay_in_hand 0.0",
        "retailrocket_relay_connected 1.0",
        "retailrocket_relay_lag_waiting 0.0",
        "retailrocket_relay_lag_pending 0.0",
        "retailrocket_requests_total 1.0",
        'retailrocket_answers_total{status="200"} 1.0',
        'retailrocket_state{state="sending"} 1.0',
        'retailrocket_state{state="halted"} 0.0',
    ):
        assert line in metrics
    assert PASSWORD not in metrics
    assert KEY not in metrics


def test_wrong_key(service: Service) -> None:
    """If the key is wrong, the relay is alive but unready; no message is acknowledged or becomes a dead letter."""
    service.publish(*views(1, 2))
    with service.relay("--grace", "0.5", RETAILROCKET_API_KEY="wrong") as relay:
        until(lambda: relay.get("/readyz")[0] == 503)
        until(lambda: "halted" in relay.get("/readyz")[1])
        assert relay.get("/livez")[0] == 200
        status, output = relay.end()

    assert status == 0
    assert "0 delivered, 0 dead letters, 2 given back" in output
    assert service.redis.xpending("events", "relay")["pending"] == 2
    assert service.emulator.stats()["total_events"] == 0


def test_a_broker_that_is_not_there(service: Service) -> None:
    """If no broker listens at the address, the relay waits, is unready, logs the reason once, and can be stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:{PASSWORD}@127.0.0.1:{free.getsockname()[1]}/0?stream=events"
        with service.relay(RETAILROCKET_RELAY_SOURCE=url) as relay:
            until(lambda: "ConnectionError" in relay.get("/readyz")[1])
            assert relay.get("/livez")[0] == 200
            assert "retailrocket_relay_connected 0.0" in relay.get("/metrics")[1]
            status, output = relay.end()

    assert status == 0
    assert output.count("the broker is lost") == 1
    assert PASSWORD not in output


def test_grace(service: Service) -> None:
    """A stopped relay delivers for up to `--grace` seconds and gives the rest back; a second signal ends this wait."""
    service.publish(*views(1, 2))
    service.emulator.add_faults([Fault(kind="stall", times=None)])
    with service.relay("--grace", "0.5") as relay:
        until(lambda: "retailrocket_in_flight 2.0" in relay.get("/metrics")[1])
        status, output = relay.end()
    assert (status, "2 given back" in output) == (0, True)

    with service.relay("--grace", "500") as relay:
        until(lambda: "retailrocket_in_flight 2.0" in relay.get("/metrics")[1])
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.stderr is not None
        while b"delivering what was read, for at most 500 s" not in (line := relay.process.stderr.readline()):
            assert line, "the relay has ended"
        status, output = relay.end()
    assert (status, "2 given back" in output) == (143, True)
    service.emulator.reset()


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ((), {"RETAILROCKET_RELAY_SOURCE": ""}, "give the broker's address: --source URL, or the environment"),
        (("--source", "amqp://u:s3cretpassw0rd@h"), {}, "the source must be an address that begins with one of redis"),
        (("--source", "redis://:s3cretpassw0rd@h/0"), {}, "must name the stream"),
        (("--batch", "7000"), {}, "window must be an int of 7000 or more"),
        (("--limiter", "redis://h"), {}, "--limiter needs a request limit: --rate must not be 0"),
        (("--limiter", "s3cretpassw0rd"), {}, "limiter must be None or the address of a Redis"),
        ((), {"RETAILROCKET_PARTNER_ID": ""}, "give the shop's public id"),
        ((), {"RETAILROCKET_BASE_URL": "ftp://x"}, "--base-url"),
    ],
)
def test_wrong_configuration(service: Service, arguments: tuple[str, ...], env: dict[str, str], message: str) -> None:
    """If the configuration is wrong, the command prints one sentence without a password, and ends with status 2."""
    result = run_command("relay", *arguments, env={**service.env, **env})

    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert PASSWORD not in result.output


def test_a_key_that_is_no_stream(service: Service) -> None:
    """If the stream's key is not a stream, the command says so in one sentence, and ends with status 2."""
    service.redis.set("events", "text")
    result = run_command("relay", env=service.env)

    assert result.exit_code == 2
    assert "error: the key 'events' holds no stream" in result.stderr


def test_port_that_is_taken(service: Service) -> None:
    """If the health port is taken, the command says so in one sentence, without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_command("relay", "--health-port", port, env=service.env)

    assert result.exit_code == 2
    assert f"error: cannot listen on 127.0.0.1, port {port}: " in result.stderr


@pytest.mark.parametrize("library", ["prometheus_client", "starlette", "uvicorn"])
def test_missing_extra(service: Service, library: str) -> None:
    """If a library of the extra `relay` is not installed, the command says how to install the extra."""
    with unimported("retailrocket_async.relay._health", "retailrocket_async.relay._metrics", missing=library):
        result = run_command("relay", env=service.env)

    advice = f'error: this command needs {library.replace("_", "-")}: pip install "retailrocket-async[relay]"\n'
    assert (2, advice) == (result.exit_code, result.stderr)


def test_missing_library_of_the_broker(service: Service) -> None:
    """If the broker's library is missing, the command says which extra installs it."""
    with unimported("retailrocket_async.relay._redis_streams", missing="redis"):
        result = run_command("relay", env=service.env)

    assert result.exit_code == 2
    assert 'this source needs redis, which is not installed: pip install "retailrocket-async[redis]"' in result.stderr


def test_dead_letters(service: Service) -> None:
    """`relay-dead` lists dead letters as lines of JSON, publishes them again, and removes them."""
    service.publish(b"junk", b"\xff", *views(1))
    with service.relay() as relay:
        until(lambda: service.dead() == 2 and service.emulator.stats()["total_events"] == 1)
        relay.end()

    listed = run_command("relay-dead", "list", env=service.env)
    lines = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [line["envelope"] for line in lines] == ["junk", "\\xff"]
    assert all(line["reason"].startswith("undecodable: event must be JSON") for line in lines)
    assert lines[0].keys() == {"id", "message_id", "reason", "died_at", "envelope"}
    assert listed.stderr == "2 dead letters\n"
    assert len(run_command("relay-dead", "list", "--most", "1", env=service.env).stdout.splitlines()) == 1

    replayed = run_command("relay-dead", "replay", "--most", "1", env=service.env)
    assert (replayed.exit_code, replayed.stderr) == (0, "1 dead letters published again\n")
    assert (service.dead(), service.redis.xlen("events")) == (1, 4)
    purged = run_command("relay-dead", "purge", "--all", env=service.env)
    assert (purged.exit_code, purged.stderr) == (0, "1 dead letters removed\n")
    assert service.dead() == 0


@pytest.mark.parametrize("verb", ["replay", "purge"])
@pytest.mark.parametrize("options", [(), ("--all", "--most", "1")])
def test_removal_needs_a_number(service: Service, verb: str, options: tuple[str, ...]) -> None:
    """If `relay-dead` must remove dead letters and gets neither a number nor `--all`, it prints an error."""
    result = run_command("relay-dead", verb, *options, env=service.env)

    assert (result.exit_code, result.stderr) == (2, "error: give either --most N or --all\n")


def test_dead_letters_of_a_broker_that_is_not_there() -> None:
    """If the broker cannot be reached, `relay-dead` prints one sentence without the password and ends with status 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:{PASSWORD}@127.0.0.1:{free.getsockname()[1]}/0?stream=events"
        result = run_command("relay-dead", "list", "--source", url)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: the broker failed: ConnectionError: ")
    assert PASSWORD not in result.output


def test_help_hides_the_source(service: Service) -> None:
    """`relay --help` names all environment variables of the relay, and does not show their values."""
    output = run_command("relay", "--help", env=service.env).stdout

    assert PASSWORD not in output
    assert KEY not in output
    for name in (
        "SOURCE",
        "NAME",
        "RATE",
        "LIMITER",
        "LIMITER_REPLICAS",
        "BATCH",
        "WINDOW",
        "GRACE",
        "HEALTH_HOST",
        "HEALTH_PORT",
    ):
        assert f"RETAILROCKET_RELAY_{name}" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ""}, "source must be"),
        ({"name": ""}, "name must be"),
        ({"batch": 0}, "batch must be"),
        ({"window": 1}, "window must be an int of 500 or more"),
        ({"window_bytes": 0}, "window_bytes must be"),
        ({"rate": -1}, "rate must be"),
        ({"rate": True}, "rate must be"),
        ({"limiter": 1}, "limiter must be"),
        ({"limiter_replicas": 2}, "need a limiter"),
        ({"limiter_on_unreachable": "wait"}, "need a limiter"),
        ({"limiter": "redis://h", "limiter_replicas": 0}, "limiter_replicas must be"),
        ({"limiter": "redis://h", "limiter_replicas": True}, "limiter_replicas must be"),
        ({"limiter": "redis://h", "limiter_on_unreachable": "stop"}, "limiter_on_unreachable must be"),
        ({"grace": -1.0}, "grace must be"),
        ({"grace": float("nan")}, "grace must be"),
        ({"health_host": ""}, "health_host must be"),
        ({"health_port": -1}, "health_port must be"),
        ({"health_port": 65536}, "health_port must be a port"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    """If a setting is invalid, `RelaySettings` raises an error that names the setting."""
    with pytest.raises(ConfigurationError, match=message):
        RelaySettings(**({"source": "redis://h?stream=a"} | options))


def test_settings_hide_their_addresses() -> None:
    """The `repr` of `RelaySettings` shows no password."""
    settings = RelaySettings(source=f"redis://:{PASSWORD}@h", limiter=f"redis://:{PASSWORD}@h")

    assert PASSWORD not in repr(settings)
