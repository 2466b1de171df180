"""How much goes in one request, and how much may wait: what the user says of batches and of the buffer."""

import math
from collections.abc import Mapping
from typing import get_args

import attrs

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._queue.eviction import DEFAULT_RANKING, Overflow, Ranks, checked_ranking


@attrs.frozen(kw_only=True)
class Batching:
    """How events are coalesced into `visitorEvents` requests.

    Attributes:
        max_events: events in one batch, 1 or more; default 500. The cost of a request is spread over them: beyond
            500 little is left to gain, while a refused or repeated batch hits more events.
        max_bytes: bytes of JSON in one batch, 1,024 or more; default 524,288 (512 KiB), half of what common servers
            accept by default. No event may be larger.
        linger: seconds the oldest event may wait for company while permits are plenty, 0 or more; default 0.1, little
            beside the time that the API takes to answer a batch.
        max_in_flight: requests in flight at once, 1 to 100; default 75. Rate x response time says what is needed: the
            API answers a batch in 1.5 s, so 50 requests a second keep 75 in flight.
        by_session: keep each visitor's events in batches of their own; default False. One edition of the API
            document describes the batch endpoint so; it costs a request per visitor. Implies `ordered`.
        ordered: never have a visitor's events in two batches in flight at once; default True, as the API demands it
            (contract, "What a batch promises"). Events are then recorded in the order in which they were tracked,
            whatever is retried. A batch that waits for its retry holds back its visitors, and up to one visitor in 512
            more for each of them.

    Raises:
        ConfigurationError: a value outside its range.
    """

    max_events: int = 500
    max_bytes: int = 512 * 1024
    linger: float = 0.1
    max_in_flight: int = 75
    by_session: bool = False
    ordered: bool = True

    def __attrs_post_init__(self) -> None:
        _check_int("Batching.max_events", self.max_events, 1, None)
        _check_int("Batching.max_bytes", self.max_bytes, 1024, None)
        _check_int("Batching.max_in_flight", self.max_in_flight, 1, 100)
        if type(self.linger) not in (int, float) or not 0 <= self.linger < math.inf:
            raise ConfigurationError(f"Batching.linger must be a number of seconds, 0 or more, not {self.linger!r}")
        for name in ("by_session", "ordered"):
            if type(getattr(self, name)) is not bool:
                raise ConfigurationError(f"Batching.{name} must be True or False, not {getattr(self, name)!r}")


@attrs.frozen(kw_only=True)
class Buffer:
    """How much may wait for a permit; whichever bound is reached first makes `track` wait.

    Events in flight come on top: at most `Batching.max_in_flight` batches.

    Attributes:
        max_events: events, 1 or more; default 100,000, four seconds of a full stream.
        max_bytes: bytes of JSON, 1,024 or more; default 67,108,864 (64 MiB).
        overflow: what a full buffer means for one event more. ``"wait"`` (default): `track` waits for room, in order,
            and `track_nowait` raises `BufferFullError`. ``"raise"``: both raise it. ``"drop_newest"``: the new event
            is dropped. ``"drop_oldest"``: the oldest ones are. ``"shed"``: the least valuable ones are, the oldest
            of them first, or the new event where it is the least valuable itself, or larger than all that is worth
            no more. What is dropped is `Dropped` with reason ``"overflow"``, counted in `Stats.dropped_by` and handed
            to `on_outcome`.
        ranking: how valuable events are, by wire name, for ``"shed"``; the lowest give way first; default
            `DEFAULT_RANKING`. An event that it does not name counts as a view does in `DEFAULT_RANKING`, 1.
        max_age: seconds after the call of `track` from which an event is dropped and not sent, or not sent again, any
            more, above 0; default None: none is too old, as every event carries its time.

    Raises:
        ConfigurationError: a value outside its range.
    """

    max_events: int = 100_000
    max_bytes: int = 64 * 1024 * 1024
    overflow: Overflow = "wait"
    ranking: Mapping[str, int] = attrs.field(default=DEFAULT_RANKING, converter=checked_ranking)
    max_age: float | None = None

    def __attrs_post_init__(self) -> None:
        _check_int("Buffer.max_events", self.max_events, 1, None)
        _check_int("Buffer.max_bytes", self.max_bytes, 1024, None)
        if self.overflow not in get_args(Overflow):
            allowed = ", ".join(map(repr, get_args(Overflow)))
            raise ConfigurationError(f"Buffer.overflow must be one of {allowed}, not {self.overflow!r}")
        age = self.max_age
        if age is not None and (type(age) not in (int, float) or not 0 < age < math.inf):
            raise ConfigurationError(f"Buffer.max_age must be None or a number of seconds above 0, not {age!r}")

    def ranks(self) -> Ranks | None:
        """Return what says which event gives way; None where none does."""
        if self.overflow == "shed":
            return Ranks(self.ranking)
        return Ranks({}) if self.overflow == "drop_oldest" else None


def _check_int(name: str, value: object, least: int, most: int | None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ConfigurationError(f"{name} must be an int {allowed}, not {value!r}")
