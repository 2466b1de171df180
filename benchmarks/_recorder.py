"""A server that remembers how often each event was recorded, in a process of its own; events are known by product."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
from _connection import Connection, Request
from _process import running as running_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _process import Pipe

REFUSED = b'"refused"'
"""A request with this text in its body is malformed to this server."""

_NUMBER = re.compile(rb'"productId":(\d+)')
_ANSWERS = {status: b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status for status in (200, 400, 401, 500, 503)}


@attrs.frozen(kw_only=True)
class Recording:
    """How the server behaves.

    Attributes:
        latency: seconds until it answers.
    """

    latency: float = 0.02


class Recorder:
    """The hold on a server process."""

    def __init__(self, port: int, pipe: Pipe) -> None:
        self.url = f"http://127.0.0.1:{port}/1.0/"
        self._pipe = pipe

    def recorded(self) -> int:
        """Return how many different events are recorded."""
        return int(self._ask("recorded"))

    def counts(self) -> Counter[int]:
        """Return how often each event is recorded."""
        counts: Counter[int] = self._ask("counts")
        return counts

    def answer(self, status: int | None) -> None:
        """Answer every request with `status`, and record nothing; None: as ever."""
        self._ask(status)

    def _ask(self, what: object) -> Any:
        self._pipe.send(what)
        return self._pipe.recv()


@contextlib.contextmanager
def running(recording: Recording) -> Iterator[Recorder]:
    """Run a server while the block runs."""
    with running_process(_main, recording) as (port, pipe):
        yield Recorder(port, pipe)


class _Books:
    def __init__(self, recording: Recording) -> None:
        self.latency = recording.latency
        self.counts: Counter[int] = Counter()
        self.status: int | None = None

    def judge(self, body: bytes) -> int:
        if self.status is not None:
            return self.status
        if REFUSED in body:
            return 400
        self.counts.update(map(int, _NUMBER.findall(body)))
        return 200


class _Connection(Connection):
    def __init__(self, books: _Books) -> None:
        super().__init__()
        self._books = books

    def arrived(self, request: Request) -> None:
        answer = _ANSWERS[self._books.judge(request.body)]
        asyncio.get_running_loop().call_later(self._books.latency, self.transport.write, answer)


def _main(pipe: Pipe, recording: Recording) -> None:
    asyncio.run(_serve(pipe, recording))


async def _serve(pipe: Pipe, recording: Recording) -> None:
    loop = asyncio.get_running_loop()
    books = _Books(recording)
    server = await loop.create_server(lambda: _Connection(books), "127.0.0.1", 0, backlog=1000)

    def asked() -> None:
        match pipe.recv():
            case "recorded":
                pipe.send(len(books.counts))
            case "counts":
                pipe.send(books.counts)
            case status:
                assert status is None or isinstance(status, int)
                books.status = status
                pipe.send(None)

    loop.add_reader(pipe.fileno(), asked)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
