"""What answers tell besides their status: how long they took, what time it is at the API, what limit it keeps."""

import asyncio
import ipaddress
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime

import attrs
import httpx

_BEGUN = "retailrocket_begun"

_AT_ONCE = 16
"""Requests on their way at once while the limit is looked for: enough for 150 a second where an answer takes 100 ms."""

_MOST = 500
"""Requests after which no limit is looked for any further."""

_LONGEST = 4.0
"""Seconds after which it is not, either."""

_WINDOW = 1.0
"""Seconds that the documented limit counts over."""


@attrs.frozen
class Answer:
    """The beginning of an answer.

    Attributes:
        sent_at: when its request began, in seconds since the epoch, by this machine's clock.
        took: seconds from there to the answer's headers, for a new connection included.
        status: the HTTP status.
        date: the header `Date` in seconds since the epoch, which knows whole ones; None without it.
        retry_after: the header `Retry-After` as it came; None without it.
    """

    sent_at: float
    took: float
    status: int
    date: float | None = None
    retry_after: str | None = None


class Answers:
    """Notes the answers that an HTTP client gets.

    Attributes:
        noted: in the order in which they came.
    """

    def __init__(self) -> None:
        self.noted: list[Answer] = []

    def http_client(self, base_url: str) -> httpx.AsyncClient | None:
        """Return a client whose answers are noted; None if httpx cannot use the environment as it is.

        The package's own client then works without what httpx cannot read, or says what is wrong.
        """
        try:
            # As the package's own client does: plain http to this host goes through no proxy, which would read the key.
            url = httpx.URL(base_url)
            trusted = url.scheme == "https" or not _is_this_host(url.host)
            return httpx.AsyncClient(
                event_hooks={"request": [self._begin], "response": [self._note]}, trust_env=trusted
            )
        except Exception:  # noqa: BLE001 - httpx raises anything for a variable, password and all
            return None

    async def _begin(self, request: httpx.Request) -> None:
        request.extensions[_BEGUN] = (time.time(), time.perf_counter())

    async def _note(self, response: httpx.Response) -> None:
        sent_at, begun = response.request.extensions[_BEGUN]
        took = time.perf_counter() - begun
        headers = response.headers
        self.noted.append(
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
        first: the first one, for which a connection was made.
        median: of the others.
        longest: of the others.
        answers: how many the others are.
    """

    first: float
    median: float
    longest: float
    answers: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Latency":
        """Return the latency of two answers or more."""
        first, *others = (answer.took for answer in answers)
        return cls(first, statistics.median(others), max(others), len(others))


@attrs.frozen
class Skew:
    """By how many seconds this machine's clock is ahead of the API's; negative where it is behind.

    Attributes:
        least: at least so many.
        most: at most so many.
    """

    least: float
    most: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Skew | None":
        """Return what the answers say together; None where they say nothing, or contradict each other.

        The API wrote its `Date`, of whole seconds, at some moment between the request and the answer.
        """
        told = [(answer, answer.date) for answer in answers if answer.date is not None]
        if not told:
            return None
        least = max(answer.sent_at - date - 1.0 for answer, date in told)
        most = min(answer.sent_at + answer.took - date for answer, date in told)
        return cls(least, most) if least <= most else None


@attrs.frozen
class Limit:
    """What became of a burst of requests.

    Attributes:
        taken: requests that were taken within the last second before one was refused, or at all.
        seconds: how long that took.
        refused: whether one was refused with 429.
        retry_after: the header `Retry-After` of that answer; None without it.
    """

    taken: int
    seconds: float
    refused: bool
    retry_after: str | None = None

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Limit":
        """Return what a burst of at least one answer found."""
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
    """Send probes as fast as they go until one is refused for the limit, or there were enough of them.

    Args:
        answers: notes them.
        probe: sends one.
    """
    # What was sent before is not to be counted.
    await asyncio.sleep(_WINDOW * 1.1)
    before, until = len(answers.noted), time.monotonic() + _LONGEST
    left = _MOST

    async def send() -> None:
        nonlocal left
        while left > 0 and time.monotonic() < until:
            left -= 1
            await probe()
            if any(answer.status == 429 for answer in answers.noted[before:]):
                left = 0

    await asyncio.gather(*(send() for _ in range(_AT_ONCE)))
    return Limit.of(answers.noted[before:])
