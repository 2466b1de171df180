"""Decides whether and when a failed request is tried again; `_http.reply` says which failures may be retried.

The library tenacity makes the decision; only this module uses tenacity. The waits are exponential with full jitter, and
the number of attempts and the elapsed time are limited. The caller passes the elapsed time, so no code here sleeps or
reads a clock.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import cast

import attrs
import tenacity

from retailrocket_async._errors import ConfigurationError, brief
from retailrocket_async._events.models import EVENT_TYPES, Event
from retailrocket_async._http.reply import Reply, Verdict


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How long a request is retried after a failure that may be temporary.

    The limit that is reached first ends the retries. Attempts count from 1, so ``max_attempts=1`` never retries.

    Attributes:
        max_attempts: largest number of requests for one batch or direct send, 1 or more; default 20. With the default
            waits, 20 attempts take minutes, so in an outage `max_elapsed` usually ends the retries first.
        max_elapsed: seconds from the first attempt after which no further attempt is planned, 0 or more; default 300,
            because a restart of the API or a failover takes minutes. An attempt that was planned earlier may still wait
            for its permit after that time.
        initial_backoff: upper limit, in seconds, of the random wait before the second attempt; default 0.5, a third of
            the time that the API takes to answer a batch. The lower limit of every random wait is 0.
        max_backoff: largest upper limit of the random waits, in seconds; default 30. The upper limit doubles with every
            attempt until it reaches this value.
        at_most_once: events, by class or wire name, that are not sent again if the API may have recorded them, e.g.
            ``(Order,)`` for a shop that counts revenue by orders; default: none but `WelcomeSequence`, so every other
            event is sent at least once. `WelcomeSequence` need not be listed, because each call sends the welcome
            letters again. A mapping to True or False can also permit to send an event again:
            ``{Order: True, WelcomeSequence: False}``. An event that is not sent again is `Abandoned` with reason
            ``"at_most_once"``; the other events of its batch are sent again. A direct send that contains such an event
            is not sent again at all.
        max_halt: seconds, 0 or more, that events wait for a person to correct the cause of a halt; default 30. If the
            cause is a wrong key, a forbidden shop or a wrong address (401, 403, 404 and the like), the events are then
            `Rejected`. If the cause is the environment or a proxy, the events are then `Abandoned`. Before that, a last
            request checks whether the cause remains, so up to 2.5 s more may pass. If `api_key` is a function and the
            answer is 401, events wait for a new key without limit, and during a close for `max_halt` seconds.
        is_throttled: function that decides whether an answer means "too many requests", as a 429 does. The function is
            called with the status of an answer that is not 2xx and the start of its body (bytes, at most 4 KiB), and
            runs in the event loop. It is not documented how the API refuses too many requests, so the API may answer
            403 or 503. Default None: only 429 has this meaning.
        outlast: wait for the end of an outage, or for a corrected key, shop or address, without limit; default False.
            `max_attempts` and `max_elapsed` then count only while other requests are answered, answers of 429 never
            count, and `max_halt` does not apply. Use this if a spool or a broker stores the events until they have an
            outcome, because the buffer stays bounded, and a full buffer takes no new events.

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
        object.__setattr__(self, "once_names", _once_names(self.at_most_once))
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
        """Return the seconds to wait before the next attempt, or None if no further attempt may be made.

        Args:
            reply: the reply to the last attempt.
            attempt: the number of that attempt, 1 or more.
            elapsed: seconds since the first attempt began.
            excused: number of attempts that do not count against `max_attempts`; these attempts still make the wait
                longer.
        """
        if reply.verdict not in (Verdict.TRANSIENT, Verdict.THROTTLED):
            return None
        # tenacity expects a record of the past attempts. The record is made here from the arguments, so no loop and no
        # clock are needed.
        past = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        # With more than about a thousand doublings, tenacity's power of two overflows; tenacity then returns
        # `max_backoff`, even if `initial_backoff` is 0.
        past.attempt_number = min(attempt, 1000)
        past.start_time, past.outcome_timestamp = 0.0, elapsed
        wait = tenacity.wait_random_exponential(multiplier=self.initial_backoff, max=self.max_backoff)(past)
        past.attempt_number = attempt - excused
        past.upcoming_sleep = max(wait, reply.retry_after or 0.0)
        stop = tenacity.stop_after_attempt(self.max_attempts) | tenacity.stop_before_delay(self.max_elapsed)
        return None if stop(past) else past.upcoming_sleep


def _once_names(events: object) -> frozenset[str]:
    """Return the wire names of the events of `RetryPolicy.at_most_once`, with those that have this property by default.

    Args:
        events: the events by class or name; or a mapping of the events to True or, if they may be sent again, False.
    """
    default = {name for name, cls in EVENT_TYPES.items() if cls.at_most_once}
    if not isinstance(events, Mapping):
        return frozenset(default | _names(events))
    choices = cast("Mapping[object, object]", events)
    if any(type(choice) is not bool for choice in choices.values()):
        raise ConfigurationError("RetryPolicy.at_most_once must map events to True or False")
    forbidden, permitted = (_names([event for event in choices if choices[event] is which]) for which in (True, False))
    return frozenset((default - permitted) | forbidden)


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
            # Without this error, a misspelt name would count as the name of an unknown event, and would have no effect.
            raise ConfigurationError(f"RetryPolicy.at_most_once must name {known!r} so, not {name!r}")
        names.add(name)
    return frozenset(names)


def _name(event: object) -> str | None:
    if isinstance(event, type):
        return event.wire_name if issubclass(event, Event) else None
    return event if isinstance(event, str) else None
