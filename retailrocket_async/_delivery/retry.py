"""When a failed request is tried again; `_reply` decides whether.

tenacity makes the decision, and stays in this file: full-jitter exponential waits, a limit on attempts and one on
elapsed time. Time comes in as an argument, so nothing here sleeps or reads a clock.
"""

import inspect
import math
from collections.abc import Callable, Collection
from typing import cast

import attrs
import tenacity

from retailrocket_async._errors import ConfigurationError, brief
from retailrocket_async._events.models import EVENT_TYPES, Event
from retailrocket_async._http.reply import Reply, Verdict


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How long a request that may yet succeed is tried.

    Whichever limit is reached first ends it. Attempts count from 1, so ``max_attempts=1`` never retries.

    Attributes:
        max_attempts: requests for one batch or direct send, 1 or more; default 20. Together with the waits below
            that is minutes, so that the time decides in an outage and the attempts only bound a flapping server.
        max_elapsed: seconds from the first attempt after which no further one is planned, 0 or more (it may then have
            to wait for its permit); default 300: an API's restart or a failover takes minutes, while the buffer's
            bound is there for longer outages.
        initial_backoff: seconds; the wait before the second attempt is random between 0 and this; default 0.5, a
            third of the time that the API takes to answer a batch.
        max_backoff: seconds; the random wait's upper end doubles with every attempt up to this; default 30.
        at_most_once: events, by class or wire name, that are not sent again once they may have been recorded, e.g.
            ``(Order,)`` for a shop that counts revenue by them; default none: at least once. Such an event is then
            `Abandoned` with reason ``"at_most_once"``; the rest of its batch is sent again. A direct send follows
            the rule as a whole.
        max_halt: seconds, 0 or more, that events wait for somebody to mend a wrong key, a forbidden shop or a wrong
            address (401, 403, 404 and the like) before they are `Rejected`, or the environment or a proxy before they
            are `Abandoned`; default 30. A last request sees first
            whether it still holds, so it may take up to 2.5 s more. Where `api_key` is a function and the answer is
            401 they wait for a new key as long as the buffer can hold them, or so long into a close.
        is_throttled: told the status of an answer that is no 2xx and the start of its body (bytes, at most 4 KiB),
            returns whether to take it for a 429: the API documents none, so a 403 or 503 may mean it. Runs in the
            event loop. Default None: 429 alone.
        outlast: wait for the end of an outage, or for a mended key, shop or address, however long it takes; default
            False. `max_attempts` and `max_elapsed` then count only what happens while other requests are answered,
            and answers of 429 not at all; `max_halt` does not count. For events that are kept elsewhere until they
            have their outcome, in a spool or a broker: the buffer still holds no more than its bounds.

    Raises:
        ConfigurationError: a value outside its range.
    """

    max_attempts: int = 20
    max_elapsed: float = 300.0
    initial_backoff: float = 0.5
    max_backoff: float = 30.0
    at_most_once: Collection[type[Event] | str] = ()
    max_halt: float = 30.0
    is_throttled: Callable[[int, bytes], bool] | None = None
    outlast: bool = False
    once_names: frozenset[str] = attrs.field(init=False, repr=False, eq=False, default=frozenset())

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "once_names", _names(self.at_most_once))
        if self.is_throttled is not None and (
            not callable(self.is_throttled) or inspect.iscoroutinefunction(self.is_throttled)
        ):
            raise ConfigurationError("RetryPolicy.is_throttled must be a plain function of a status and a body")
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise ConfigurationError(f"RetryPolicy.max_attempts must be an int of 1 or more, not {self.max_attempts!r}")
        for name in ("max_elapsed", "initial_backoff", "max_backoff", "max_halt"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ConfigurationError(f"RetryPolicy.{name} must be a number of seconds, 0 or more, not {value!r}")
        if type(self.outlast) is not bool:
            raise ConfigurationError(f"RetryPolicy.outlast must be True or False, not {self.outlast!r}")
        if self.initial_backoff > self.max_backoff:
            raise ConfigurationError("RetryPolicy.initial_backoff must not be above max_backoff")

    def wait_before_next(self, reply: Reply, *, attempt: int, elapsed: float, excused: int = 0) -> float | None:
        """Return the seconds to wait before the next attempt, or None to stop.

        Args:
            reply: what the last attempt brought.
            attempt: the number of that attempt, 1 or more.
            elapsed: seconds since the first attempt began.
            excused: how many of the attempts do not count, though the wait grows with them.
        """
        if reply.verdict not in (Verdict.TRANSIENT, Verdict.THROTTLED):
            return None
        # tenacity's strategies read one record of the past; built by hand, it needs neither a loop nor a clock.
        past = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        # Beyond a thousand doublings tenacity's power of two overflows, to `max_backoff` even from 0.
        past.attempt_number = min(attempt, 1000)
        past.start_time, past.outcome_timestamp = 0.0, elapsed
        wait = tenacity.wait_random_exponential(multiplier=self.initial_backoff, max=self.max_backoff)(past)
        past.attempt_number = attempt - excused
        past.upcoming_sleep = max(wait, reply.retry_after or 0.0)
        stop = tenacity.stop_after_attempt(self.max_attempts) | tenacity.stop_before_delay(self.max_elapsed)
        return None if stop(past) else past.upcoming_sleep


def _names(events: object) -> frozenset[str]:
    """Return the wire names of events given by class or name."""
    if isinstance(events, str) or not isinstance(events, Collection):
        raise ConfigurationError(f"RetryPolicy.at_most_once must be a collection like (Order,), not {brief(events)}")
    names: set[str] = set()
    for event in cast("Collection[object]", events):
        name = _name(event)
        if not name:
            raise ConfigurationError(
                f"RetryPolicy.at_most_once must hold event classes or wire names ({', '.join(EVENT_TYPES)}), "
                f"not {brief(event)}"
            )
        known = {each.casefold(): each for each in EVENT_TYPES}.get(name.replace("_", "").casefold(), name)
        if known != name:
            # Taken for the name of a newer event it would protect nothing.
            raise ConfigurationError(f"RetryPolicy.at_most_once must name {known!r} so, not {name!r}")
        names.add(name)
    return frozenset(names)


def _name(event: object) -> str | None:
    if isinstance(event, type):
        return event.wire_name if issubclass(event, Event) else None
    return event if isinstance(event, str) else None
