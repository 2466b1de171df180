"""When a failed request is tried again; `_reply` decides whether.

tenacity makes the decision, and stays in this file: full-jitter exponential waits, a limit on attempts and one on
elapsed time. Time comes in as an argument, so nothing here sleeps or reads a clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import tenacity

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._reply import Verdict

if TYPE_CHECKING:
    from retailrocket_async._reply import Reply


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
        initial_backoff: seconds; the wait before the second attempt is random between 0 and this; default 0.5, five
            times the API's expected answer time.
        max_backoff: seconds; the random wait's upper end doubles with every attempt up to this; default 30.

    Raises:
        ConfigurationError: a value outside its range.
    """

    max_attempts: int = 20
    max_elapsed: float = 300.0
    initial_backoff: float = 0.5
    max_backoff: float = 30.0

    def __attrs_post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise ConfigurationError(f"RetryPolicy.max_attempts must be an int of 1 or more, not {self.max_attempts!r}")
        for name in ("max_elapsed", "initial_backoff", "max_backoff"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ConfigurationError(f"RetryPolicy.{name} must be a number of seconds, 0 or more, not {value!r}")
        if self.initial_backoff > self.max_backoff:
            raise ConfigurationError("RetryPolicy.initial_backoff must not be above max_backoff")

    def wait_before_next(self, reply: Reply, *, attempt: int, elapsed: float) -> float | None:
        """Return the seconds to wait before the next attempt, or None to stop.

        Args:
            reply: what the last attempt brought.
            attempt: the number of that attempt, 1 or more.
            elapsed: seconds since the first attempt began.
        """
        if reply.verdict is not Verdict.TRANSIENT:
            return None
        # tenacity's strategies read one record of the past; built by hand, it needs neither a loop nor a clock.
        past = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        # Beyond a thousand doublings tenacity's power of two overflows, to `max_backoff` even from 0.
        past.attempt_number = min(attempt, 1000)
        past.start_time, past.outcome_timestamp = 0.0, elapsed
        wait = tenacity.wait_random_exponential(multiplier=self.initial_backoff, max=self.max_backoff)(past)
        past.attempt_number = attempt
        past.upcoming_sleep = max(wait, reply.retry_after or 0.0)
        stop = tenacity.stop_after_attempt(self.max_attempts) | tenacity.stop_before_delay(self.max_elapsed)
        return None if stop(past) else past.upcoming_sleep
