"""The commands and the report of the faulty server: values that its process exchanges with the client's process."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

NAMES = ("view", "addToBasket", "order", "recomTap", "recomAddToBasket", "benchmark")
"""Names of the events whose `productId` is the number of the event; the API does not define the last name."""

POISON = "poison"
"""The `stockId` of an event; the server refuses every batch that contains it."""

KEY = "key"
PARTNER = "partner"

Kind: TypeAlias = Literal["status", "reset", "close", "stall", "cut_head", "cut_body", "garbage", "idle_close"]


class Fault(NamedTuple):
    """One way in which the server fails.

    Attributes:
        kind: ``"status"`` answers with `status`; ``"reset"`` and ``"close"`` end the connection without an answer;
            ``"stall"`` never answers; ``"cut_head"`` ends in the middle of the status line and headers, ``"cut_body"``
            in the middle of the body of a 200; ``"garbage"`` answers bytes that are not HTTP; ``"idle_close"`` ends a
            reused connection when the next request begins to arrive on it.
        status: the status of the answer; a redirect leads to another port, where no connection may arrive.
        record: whether the events are recorded before the failure. `"cut_body"` needs True, because its answer is a
            200; this fault never hits a request whose events must not be recorded.
        retry_after: the value of the header ``Retry-After``; None sends none.
        probability: the probability that the fault hits a request, 0 to 1.
        times: the largest number of requests that the fault hits; None for any number.
    """

    kind: Kind = "status"
    status: int = 503
    record: bool = False
    retry_after: str | None = None
    probability: float = 1.0
    times: int | None = None

    @property
    def title(self) -> str:
        """The name of the fault in the server's log."""
        what = str(self.status) if self.kind == "status" else self.kind
        return f"{what}, recorded" if self.record else what


class Conditions(NamedTuple):
    """The settings of the server.

    Attributes:
        key: the only valid API key; requests with another key get 401.
        limit: requests admitted in any one second; the rest get 429. None for no limit.
        max_bytes: the largest body; larger ones get 413. None for no bound.
        latency: average seconds from the recording of the events to the answer.
        batch_latency: further seconds that a recorded batch takes. The API takes 1.5 s or more, because it confirms
            that the events and their order are saved.
        faults: the faults that may hit a request, tried in this order; at most one of them hits a request.
        seed: the seed of all random decisions; only the first conditions of a server set it.
    """

    key: str = KEY
    limit: int | None = 50
    max_bytes: int | None = None
    latency: float = 0.0
    batch_latency: float = 0.0
    faults: tuple[Fault, ...] = ()
    seed: int = 0


class Arrival(NamedTuple):
    """A request that the server received.

    Attributes:
        at: seconds of the monotonic clock, which all processes of the machine share.
        events: the number of its events; 0 if its body was not read.
        answer: the status of the answer, or the name of the fault.
        recorded: whether its events were recorded.
    """

    at: float
    events: int
    answer: str
    recorded: bool


class Report(NamedTuple):
    """All requests and events that the server has received so far.

    Attributes:
        arrivals: every request in the order of time.
        counts: byte n is how often event number n was recorded; 255 stands for 255 or more.
        names: byte n is the position in `NAMES` of the name under which event number n was recorded.
        strayed: the number of connections to the address to which redirects lead; the client must not follow them.
        malformed: the number of requests whose body or target the API does not define.
        overlaps: the number of requests that began while another one with an event of the same visitor was under way.
        out_of_order: the number of visitors whose events were not recorded in the order in which they were tracked.
        lag: the longest delay of the server's own event loop in seconds.
    """

    arrivals: list[Arrival]
    counts: bytes
    names: bytes
    strayed: int
    malformed: int
    overlaps: int
    out_of_order: int
    lag: float
