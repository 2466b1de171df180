"""What a faulty server is told, and what it tells: values that both processes know."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

NAMES = ("view", "addToBasket", "order", "recomTap", "recomAddToBasket", "benchmark")
"""Events that carry a `productId`, by which they are numbered; the last is none of the API's."""

POISON = "poison"
"""The `stockId` of an event that makes the server refuse every batch that holds it."""

KEY = "key"
PARTNER = "partner"

Kind: TypeAlias = Literal["status", "reset", "close", "stall", "cut_head", "cut_body", "garbage", "idle_close"]


class Fault(NamedTuple):
    """One way to fail.

    Attributes:
        kind: ``"status"`` answers with `status`; ``"reset"`` and ``"close"`` end the connection without an answer;
            ``"stall"`` never answers; ``"cut_head"`` ends in the middle of the status and headers, ``"cut_body"`` in
            the middle of the body of a 200; ``"garbage"`` answers what is no HTTP; ``"idle_close"`` ends a connection
            that was used before, as the next request begins to arrive on it.
        status: of an answer; a redirect's target is another port, where nothing may arrive.
        record: whether the events are recorded first, as they must be for a 200 with a cut body, which strikes no other
            requests.
        retry_after: the header's value; None for none.
        probability: of striking a request, 0 to 1.
        times: requests that it strikes; None for any number.
    """

    kind: Kind = "status"
    status: int = 503
    record: bool = False
    retry_after: str | None = None
    probability: float = 1.0
    times: int | None = None

    @property
    def title(self) -> str:
        """What the server's log calls it."""
        what = str(self.status) if self.kind == "status" else self.kind
        return f"{what}, recorded" if self.record else what


class Conditions(NamedTuple):
    """How the server behaves.

    Attributes:
        key: the only API key that is let in; others get 401.
        limit: requests in any one second; the rest gets 429. None for no limit.
        max_bytes: of a body; larger ones get 413. None for no bound.
        latency: seconds that an answer takes on average, after the events are recorded.
        faults: tried in this order for every request; the first one that strikes is the only one.
        seed: of everything random; only the first conditions' counts.
    """

    key: str = KEY
    limit: int | None = 50
    max_bytes: int | None = None
    latency: float = 0.0
    faults: tuple[Fault, ...] = ()
    seed: int = 0


class Arrival(NamedTuple):
    """One request; `at` is in seconds of the clock that all processes here share, `answer` a status or a fault."""

    at: float
    events: int
    answer: str
    recorded: bool


class Report(NamedTuple):
    """What arrived.

    Attributes:
        arrivals: every request in the order of time.
        counts: how often the event of each number was recorded, 255 standing for more.
        names: the index in `NAMES` of each recorded event's name.
        strayed: connections to the target of the redirects.
        malformed: requests whose body or target was none of the API's.
        lag: the longest time in seconds by which the server's own loop was late.
    """

    arrivals: list[Arrival]
    counts: bytes
    names: bytes
    strayed: int
    malformed: int
    lag: float
