"""A Kafka broker in a process of its own: the mock cluster of librdkafka, which stores everything in memory.

The mock cluster speaks Kafka's protocol over loopback: topics, produce, fetch, consumer groups with rebalances, and
committed offsets. It has no disks, no replicas that fall behind, no ACLs, no TLS, no SASL, and no data that survives
the end of the process, so no test covers these. It stores at most 5 MB and 100,000 messages in each partition.

The package `confluent-kafka` contains librdkafka, but its Python interface cannot control the mock cluster. So this
module calls librdkafka by ctypes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALLED = importlib.util.find_spec("confluent_kafka") is not None


class KafkaServer:
    """Controls the process in which the broker runs.

    Attributes:
        bootstrap_servers: the address of the broker, as ``"127.0.0.1:port"``.
        process: the process of the broker.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.bootstrap_servers = process.stdout.readline().strip()

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create a topic. If a client asks for a topic that does not exist, the broker creates it with 4 partitions."""
        self._send(f"topic {topic} {partitions}")

    def down(self) -> None:
        """Close every connection and refuse new ones; no data is lost."""
        self._send("down")

    def up(self) -> None:
        """Accept connections again after `down`."""
        self._send("up")

    def fail(self, api: int, error: int, times: int) -> None:
        """Answer `times` requests of one kind with the error code `error`; `api` is Kafka's number of this kind."""
        self._send(f"fail {api} {error} {times}")

    def _send(self, command: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer == "0", f"{command}: {answer}"


@contextmanager
def kafka_server() -> Iterator[KafkaServer]:
    """Run a broker while the block runs."""
    command = [sys.executable, __file__]
    with subprocess.Popen(  # no shell, and a fixed command
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield KafkaServer(process)
        finally:
            process.kill()


def _library() -> ctypes.CDLL:
    import confluent_kafka

    folder = Path(confluent_kafka.__file__).parent
    # Wheels for Linux and wheels for macOS contain the library in different folders.
    found = [*folder.parent.glob("confluent_kafka.libs/librdkafka*"), *folder.glob(".dylibs/librdkafka*")]
    library = ctypes.CDLL(str(found[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in [
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_push_request_errors_array", None, [pointer, ctypes.c_int16, ctypes.c_size_t, pointer]),
    ]:
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def main() -> None:
    """Run the mock cluster, and execute the commands from the standard input until this input ends."""
    library = _library()
    reason = ctypes.create_string_buffer(512)
    handle = library.rd_kafka_new(0, None, reason, len(reason))
    cluster = library.rd_kafka_mock_cluster_new(handle, 1)
    # A new consumer group waits for more members before it starts. With the default of 3 s, most of the tests' time
    # would be this wait.
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 100)
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)  # noqa: T201
    for line in sys.stdin:
        result = 0
        match line.split():
            case ["topic", topic, partitions]:
                result = library.rd_kafka_mock_topic_create(cluster, topic.encode(), int(partitions), 1)
            case ["down"]:
                result = library.rd_kafka_mock_broker_set_down(cluster, 1)
            case ["up"]:
                result = library.rd_kafka_mock_broker_set_up(cluster, 1)
            case ["fail", api, error, times]:
                errors = (ctypes.c_int * int(times))(*[int(error)] * int(times))
                library.rd_kafka_mock_push_request_errors_array(cluster, int(api), int(times), errors)
            case _:
                result = -1
        print(result, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
