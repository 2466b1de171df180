"""The settings of a relay's process."""

import math
import socket
from typing import Literal

import attrs

from retailrocket_async import Batching, Buffer, ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async.relay._relay import BATCH, GRACE, WINDOW, WINDOW_BYTES


def _hostname() -> str:
    return socket.gethostname()


@attrs.frozen(kw_only=True)
class RelaySettings:
    """Stores and checks the settings of a process that runs a relay.

    Attributes:
        source: the broker's address, e.g. ``redis://redis:6379/0?stream=events``; may contain a password.
        name: the relay's name at the broker; default the host's name. Use the same name again when the process is
            restarted, so that the relay gets its unsettled messages again. Two relays on one host need different names.
        batch: largest number of messages in one fetch, 1 or more; default 500.
        window: largest number of messages that are fetched and not settled, `batch` or more; default 6,000.
        window_bytes: total size in bytes of the messages that are fetched and not settled, at which the relay stops
            fetching, 1 or more; default 16 MiB.
        rate: requests a second, 0 or more; default 50. 0 means no limit.
        limiter: address of a Redis through which all processes of the shop share the limit of requests; default None:
            the limit applies to this process alone.
        limiter_replicas: the largest number of processes that share the limit, 1 or more; used while the limiter's
            Redis does not answer. Default None: the largest number that Redis counted in the last minute.
        limiter_on_unreachable: what the limiter does while its Redis does not answer: ``"share"`` (default), ``"wait"``
            or ``"raise"``, see `RedisLimiter`.
        grace: seconds, 0 or more, to go on delivering fetched messages after the relay was stopped; default 25.
        allow_custom: deliver events of unknown names, too; default False.
        allow_extra: deliver unknown fields of documented events, too; default False.
        health_host: address on which health and metrics are served; default ``"127.0.0.1"``.
        health_port: port on which health and metrics are served; default 8081; 0 for any free port.

    Raises:
        ConfigurationError: a value is invalid.
    """

    source: str = attrs.field(repr=False)
    name: str = attrs.field(factory=_hostname)
    batch: int = BATCH
    window: int = WINDOW
    window_bytes: int = WINDOW_BYTES
    rate: int = 50
    limiter: str | None = attrs.field(default=None, repr=False)
    limiter_replicas: int | None = None
    limiter_on_unreachable: Literal["share", "wait", "raise"] = "share"
    grace: float = GRACE
    allow_custom: bool = False
    allow_extra: bool = False
    health_host: str = "127.0.0.1"
    health_port: int = 8081

    def __attrs_post_init__(self) -> None:
        check_texts(source=self.source, health_host=self.health_host)
        check_texts(name=self.name, spaces=True)
        self._check_limiter()
        for name, least in (("batch", 1), ("window", self.batch), ("window_bytes", 1), ("rate", 0), ("health_port", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigurationError(f"{name} must be an int of {least} or more, not {value!r}")
        if self.health_port > 65535:
            raise ConfigurationError(f"health_port must be a port, at most 65535, not {self.health_port!r}")
        if type(self.grace) not in (int, float) or not 0 <= self.grace < math.inf:
            raise ConfigurationError(f"grace must be a number of seconds, 0 or more, not {self.grace!r}")

    def _check_limiter(self) -> None:
        if self.limiter is not None:
            check_texts(limiter=self.limiter)
        if self.limiter is not None and "://" not in self.limiter:
            raise ConfigurationError("limiter must be None or the address of a Redis, e.g. redis://redis:6379/0")
        replicas, does = self.limiter_replicas, self.limiter_on_unreachable
        if replicas is not None and (type(replicas) is not int or replicas < 1):
            raise ConfigurationError(f"limiter_replicas must be None or an int of 1 or more, not {replicas!r}")
        if does not in ("share", "wait", "raise"):
            raise ConfigurationError(f"limiter_on_unreachable must be 'share', 'wait' or 'raise', not {does!r}")
        if self.limiter is None and (replicas is not None or does != "share"):
            raise ConfigurationError("limiter_replicas and limiter_on_unreachable need a limiter")

    @property
    def buffer(self) -> Buffer:
        """The client's buffer settings. The buffer has room for the whole window, so the relay never waits for room."""
        return Buffer(
            max_events=self.window + self.batch,
            # All messages in the window may belong to one visitor.
            max_visitor_events=self.window + self.batch,
            max_bytes=2 * self.window_bytes + self.batch * Batching().max_bytes,
        )
