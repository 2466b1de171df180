"""A Kafka broker in a process of its own: the mock cluster of librdkafka, which keeps everything in memory.

It speaks Kafka's protocol over loopback: topics, produce, fetch, consumer groups with their rebalances, committed
offsets. It does not have, so no test covers: disks, replicas that fall behind, ACLs, TLS, SASL, data that survives the
end of the process. It keeps 5 MB and 100,000 messages of a partition at most.

`confluent-kafka` ships the library. Its Python interface does not control the mock cluster, so ctypes does.
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
    """The running broker.

    Attributes:
        bootstrap_servers: where it listens, as ``"127.0.0.1:port"``.
        process: the process it lives in.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.bootstrap_servers = process.stdout.readline().strip()

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create `topic`; a topic that a client asks for is created with 4 partitions otherwise."""
        self._send(f"topic {topic} {partitions}")

    def down(self) -> None:
        """Close every connection and refuse new ones; no data is lost."""
        self._send("down")

    def up(self) -> None:
        """Serve again."""
        self._send("up")

    def fail(self, api: int, error: int, times: int) -> None:
        """Answer the next `times` requests of the kind `api` with the error code `error`."""
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
    with subprocess.Popen(  # no shell, and a command of ours
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield KafkaServer(process)
        finally:
            process.kill()


def _library() -> ctypes.CDLL:
    import confluent_kafka

    folder = Path(confluent_kafka.__file__).parent
    # The path in the wheels for Linux, and in those for macOS.
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
    """Run the mock cluster until the standard input ends; execute the commands that it reads there."""
    library = _library()
    reason = ctypes.create_string_buffer(512)
    handle = library.rd_kafka_new(0, None, reason, len(reason))
    cluster = library.rd_kafka_mock_cluster_new(handle, 1)
    # A new group waits for more members; the default of 3 s would be most of what the tests take.
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
