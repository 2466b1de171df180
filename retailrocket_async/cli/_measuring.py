"""Measures the API's latency, the error of this machine's clock, and the API's request limit."""

import asyncio
import ipaddress
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime

import attrs
import httpx

_BEGUN = "retailrocket_begun"

_CONCURRENT = 16
"""Number of requests in flight while the limit is measured: enough for 150 requests a second if each takes 100 ms."""

_MAX_REQUESTS = 500
"""Largest number of requests for measuring the limit."""

_MAX_SECONDS = 4.0
"""Largest number of seconds for measuring the limit."""

_WINDOW = 1.0
"""Length in seconds of the window in which, by the API's documentation, the API counts requests."""


@attrs.frozen
class Answer:
    """Status, times and headers of one answer.

    Attributes:
        sent_at: when the request began, in seconds since the epoch, by this machine's clock.
        took: seconds from `sent_at` to the answer's headers; includes connecting if the connection was new.
        status: the HTTP status.
        date: the header `Date` in whole seconds since the epoch; None if the answer has no such header.
        retry_after: the text of the header `Retry-After`; None if the answer has no such header.
    """

    sent_at: float
    took: float
    status: int
    date: float | None = None
    retry_after: str | None = None


class Answers:
    """Records the answers that an HTTP client gets.

    Attributes:
        recorded: the answers, in the order of their arrival.
    """

    def __init__(self) -> None:
        self.recorded: list[Answer] = []

    def http_client(self, base_url: str) -> httpx.AsyncClient | None:
        """Return a client whose answers are recorded; None if httpx cannot use the environment's proxy settings.

        If None, use the package's own client, which ignores the unreadable setting or says what is wrong.
        """
        try:
            # A proxy could read the key of an http:// request. So http:// requests to this host use no proxy, as in the
            # package's own client.
            url = httpx.URL(base_url)
            trusted = url.scheme == "https" or not _is_this_host(url.host)
            return httpx.AsyncClient(
                event_hooks={"request": [self._begin], "response": [self._record]}, trust_env=trusted
            )
        except Exception:  # noqa: BLE001 - httpx raises errors of many types, whose text may hold a password
            return None

    async def _begin(self, request: httpx.Request) -> None:
        request.extensions[_BEGUN] = (time.time(), time.perf_counter())

    async def _record(self, response: httpx.Response) -> None:
        sent_at, begun = response.request.extensions[_BEGUN]
        took = time.perf_counter() - begun
        headers = response.headers
        self.recorded.append(
            Answer(sent_at, took, response.status_code, _moment(headers.get("date")), headers.get("retry-after"))
        )


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _moment(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


@attrs.frozen
class Latency:
    """How long answers took, in seconds.

    Attributes:
        first: the time of the first answer, which includes connecting.
        median: the median time of the other answers.
        longest: the longest time of the other answers.
        answers: the number of the other answers.
    """

    first: float
    median: float
    longest: float
    answers: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Latency":
        """Return the latency of two or more answers."""
        first, *others = (answer.took for answer in answers)
        return cls(first, statistics.median(others), max(others), len(others))


@attrs.frozen
class Skew:
    """Bounds for the seconds by which this machine's clock is ahead of the API's clock; negative if this clock is slow.

    Attributes:
        least: the lower bound.
        most: the upper bound.
    """

    least: float
    most: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Skew | None":
        """Return the bounds that follow from all answers; None if no answer has a `Date`, or the answers disagree.

        The API wrote the `Date`, in whole seconds, at some time between sending the request and receiving the answer.
        """
        dated = [(answer, answer.date) for answer in answers if answer.date is not None]
        if not dated:
            return None
        least = max(answer.sent_at - date - 1.0 for answer, date in dated)
        most = min(answer.sent_at + answer.took - date for answer, date in dated)
        return cls(least, most) if least <= most else None


@attrs.frozen
class Limit:
    """The result of a burst of requests.

    Attributes:
        taken: number of requests that were accepted in the last second before the first 429; if there is no 429, the
            number of all requests.
        seconds: the time in which the requests of `taken` were sent and answered.
        refused: whether a request was answered with 429.
        retry_after: the header `Retry-After` of the first 429; None if there is no 429, or no such header.
    """

    taken: int
    seconds: float
    refused: bool
    retry_after: str | None = None

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Limit":
        """Return the result of a burst of one or more answers."""
        begun = min(answer.sent_at for answer in answers)
        refusal = min((answer for answer in answers if answer.status == 429), key=_sent_at, default=None)
        if refusal is None:
            ended = max(answer.sent_at + answer.took for answer in answers)
            return cls(len(answers), ended - begun, refused=False)
        ended = refusal.sent_at + refusal.took
        taken = [a for a in answers if a.status != 429 and ended - _WINDOW <= a.sent_at <= ended]
        begun = max(begun, ended - _WINDOW)
        return cls(len(taken), ended - begun, refused=True, retry_after=refusal.retry_after)


def _sent_at(answer: Answer) -> float:
    return answer.sent_at


async def find_limit(answers: Answers, probe: Callable[[], Awaitable[object]]) -> Limit:
    """Send probes as fast as possible until one is answered with 429, or for 500 requests or 4 s; return the result.

    Args:
        answers: records the answers to the probes.
        probe: sends one probe.
    """
    # Wait until the API's window contains no earlier request.
    await asyncio.sleep(_WINDOW * 1.1)
    before, until = len(answers.recorded), time.monotonic() + _MAX_SECONDS
    left = _MAX_REQUESTS

    async def send() -> None:
        nonlocal left
        while left > 0 and time.monotonic() < until:
            left -= 1
            await probe()
            if any(answer.status == 429 for answer in answers.recorded[before:]):
                left = 0

    await asyncio.gather(*(send() for _ in range(_CONCURRENT)))
    return Limit.of(answers.recorded[before:])
