"""``relay``: delivers the messages of a broker to the API until a signal stops the command."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import typer

from retailrocket_async import AsyncTrackingClient, ConfigurationError, RateLimit, RetryPolicy
from retailrocket_async.cli._collector import sparing_collector
from retailrocket_async.cli._credentials import (
    DEFAULT_BASE_URL,
    AllowInsecureHttp,
    BaseUrl,
    PartnerId,
    credentials,
)
from retailrocket_async.cli._extras import needing
from retailrocket_async.cli._signals import ending_signals
from retailrocket_async.cli._terminal import FAILED, fail, fail_to_listen, print_err, reporting_errors
from retailrocket_async.relay import Relay, RelaySettings, Source, source_from_url

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = "RETAILROCKET_RELAY_SOURCE"
NAME = "RETAILROCKET_RELAY_NAME"

_PING = 1.0
"""Seconds between two pings while the limiter's Redis has never answered."""

_UNSET = RelaySettings(source="unset")

EPILOG = f"""
\b
[bold]The source[/bold] is an address; if it has a password, set {SOURCE} instead of the option:
  redis://HOST:6379/0?stream=events&group=relay     Redis Streams, extra redis
  kafka://HOST:9092/...                             Kafka, extra kafka
  nats://HOST:4222/...                              NATS JetStream, extra nats
The parameters after the question mark are described in the documentation of the relay.

Every message is one envelope, e.g. {{"view": {{"sessionExternalId": "a1b2c3", "productId": 42}}}}. It is acknowledged
once its event has an outcome: delivered, or a dead letter (refused by the API, or not an event). While the API is down
or the key is refused, the relay holds the messages it has read, and reads no more. However the relay ends, no message
is lost; after a crash up to --window events are delivered twice.

/livez, /readyz and /metrics (Prometheus) are served on --health-host and --health-port.

\b
[bold]Examples[/bold]
  retailrocket-async relay --source "redis://localhost:6379/0?stream=events"
  retailrocket-async relay --name relay-2 --health-port 8082
  retailrocket-async relay-dead list

[bold]Exit status[/bold]: 0 stopped by SIGTERM or Ctrl-C and every message is settled, 1 some messages could not be
settled and will be delivered again, 2 wrong arguments or configuration, 130 or 143 stopped by a second signal.
"""

SourceUrl: TypeAlias = Annotated[
    str, typer.Option("--source", envvar=SOURCE, metavar="URL", show_default=False, help="The broker. Required.")
]
RelayName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--name",
        envvar=NAME,
        metavar="NAME",
        show_default=False,
        help="The name of this relay at the broker; default the host's name. Keep it when the relay is restarted, and "
        "give relays that run at the same time different names.",
    ),
]


class OnUnreachable(StrEnum):
    """The values that `RedisLimiter` accepts for its argument `on_unreachable`."""

    SHARE = "share"
    WAIT = "wait"
    RAISE = "raise"


def relay(  # noqa: PLR0913 - one for each option
    *,
    source: SourceUrl = "",
    name: RelayName = "",
    base_url: BaseUrl = DEFAULT_BASE_URL,
    partner_id: PartnerId = "",
    rate: Annotated[
        int,
        typer.Option(
            min=0,
            envvar="RETAILROCKET_RELAY_RATE",
            help="Requests per second, all of this shop's programs together; 0 for no limit.",
        ),
    ] = _UNSET.rate,
    limiter: Annotated[
        str,
        typer.Option(
            envvar="RETAILROCKET_RELAY_LIMITER",
            metavar="URL",
            show_default=False,
            help="A Redis in which all programs of the shop share the limit, redis://... (extra redis).",
        ),
    ] = "",
    limiter_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            envvar="RETAILROCKET_RELAY_LIMITER_REPLICAS",
            metavar="N",
            show_default=False,
            help="The most programs that share the limit, used while that Redis does not answer; default the number "
            "that was seen in the last minute.",
        ),
    ] = None,
    limiter_on_unreachable: Annotated[
        OnUnreachable,
        typer.Option(
            envvar="RETAILROCKET_RELAY_LIMITER_ON_UNREACHABLE",
            help="While that Redis does not answer, each program keeps to its share, waits, or fails and tries again.",
        ),
    ] = OnUnreachable.SHARE,
    batch: Annotated[
        int, typer.Option(min=1, envvar="RETAILROCKET_RELAY_BATCH", help="Messages in one fetch.")
    ] = _UNSET.batch,
    window: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="RETAILROCKET_RELAY_WINDOW",
            help="The most messages that are read and not settled; so many may be delivered twice after a crash.",
        ),
    ] = _UNSET.window,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            envvar="RETAILROCKET_RELAY_GRACE",
            metavar="SECONDS",
            help="How long the messages already read are delivered after SIGTERM or Ctrl-C.",
        ),
    ] = _UNSET.grace,
    allow_custom: Annotated[
        bool,
        typer.Option(
            "--allow-custom",
            envvar="RETAILROCKET_RELAY_ALLOW_CUSTOM",
            help="Deliver events of unknown names too, as they are.",
        ),
    ] = False,
    allow_extra: Annotated[
        bool,
        typer.Option(
            "--allow-extra",
            envvar="RETAILROCKET_RELAY_ALLOW_EXTRA",
            help="Deliver fields that the API does not document too, as they are.",
        ),
    ] = False,
    health_host: Annotated[
        str,
        typer.Option(
            envvar="RETAILROCKET_RELAY_HEALTH_HOST",
            help="Address to serve health and metrics on; 0.0.0.0 for all addresses of this machine.",
        ),
    ] = _UNSET.health_host,
    health_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            envvar="RETAILROCKET_RELAY_HEALTH_PORT",
            help="Port to serve health and metrics on; 0 for any free one.",
        ),
    ] = _UNSET.health_port,
    allow_insecure_http: AllowInsecureHttp = False,
) -> None:
    """Deliver the events that services publish to Redis Streams, Kafka or NATS.

    Run this command as a service. It runs until SIGTERM or Ctrl-C, also through restarts of the broker and outages
    of the API.
    """
    with reporting_errors():
        _serving_health()
        settings = RelaySettings(
            source=_given(source),
            name=name or _UNSET.name,
            batch=batch,
            window=window,
            rate=rate,
            limiter=limiter or None,
            limiter_replicas=limiter_replicas,
            limiter_on_unreachable=limiter_on_unreachable.value,
            grace=grace,
            allow_custom=allow_custom,
            allow_extra=allow_extra,
            health_host=health_host,
            health_port=health_port,
        )
        if settings.limiter is not None and not settings.rate:
            fail("--limiter needs a request limit: --rate must not be 0")
        key, shop = credentials(partner_id)

        def client_of(**options: Any) -> AsyncTrackingClient:  # noqa: ANN401 - as the constructor takes them
            return AsyncTrackingClient(
                key(),
                shop,
                base_url=base_url,
                # The broker keeps the events during an outage.
                retry=RetryPolicy(outlast=True),
                buffer=settings.buffer,
                allow_insecure_http=allow_insecure_http,
                **options,
            )

        _log_to_stderr()
        raise typer.Exit(asyncio.run(_run(settings, shop, client_of)))


def open_source(source: str, name: str) -> Source:
    """Return an unopened source for the option ``--source``; without the option, exit with a sentence and status 2."""
    return source_from_url(_given(source), name=name or _UNSET.name)


def _given(source: str) -> str:
    if not source:
        fail(f"give the broker's address: --source URL, or the environment variable {SOURCE}")
    return source


async def _run(settings: RelaySettings, shop: str, client_of: "Callable[..., AsyncTrackingClient]") -> int:
    serving_health = _serving_health()
    source = source_from_url(settings.source, name=settings.name)
    async with _limit(settings, shop) as limit:
        client = client_of(**limit.options)
        relay = Relay(
            source,
            client,
            batch=settings.batch,
            window=settings.window,
            window_bytes=settings.window_bytes,
            grace=settings.grace,
            allow_custom=settings.allow_custom,
            allow_extra=settings.allow_extra,
            trouble=lambda: limit.trouble,
        )
        signals: list[int] = []
        running = asyncio.create_task(_serve(relay, client, settings, serving_health))

        def interrupt(number: int) -> None:
            signals.append(number)
            if len(signals) == 1:
                print_err(f"{signal.Signals(number).name}: delivering what was read, for at most {settings.grace:g} s")
                relay.stop()
            else:
                running.cancel()

        with ending_signals(interrupt), sparing_collector():
            await asyncio.wait({running})
    stats = relay.stats()
    print_err(
        f"stopped: {stats.delivered:,} delivered, {sum(stats.dead.values()):,} dead letters, "
        f"{stats.released:,} given back, {stats.unsettled:,} not settled"
    )
    if running.cancelled():
        return 128 + signals[-1]
    return 0 if running.result() else FAILED


async def _serve(relay: Relay, client: AsyncTrackingClient, settings: RelaySettings, serving_health: Any) -> bool:  # noqa: ANN401 - an extra
    serving = serving_health(relay, client, settings.health_host, settings.health_port)
    try:
        root = await serving.__aenter__()
    except OSError as error:
        fail_to_listen(settings.health_host, settings.health_port, error, "--health-port")
    try:
        print_err(f"relay {settings.name}: health and metrics at {root}")
        return await relay.run()
    finally:
        await serving.__aexit__(None, None, None)


class _Limit:
    """The request limit, which applies to this relay alone or is shared through Redis.

    Attributes:
        options: the client's keyword argument for the limit, ``rate_limit`` or ``limiter``.
        trouble: one line that says why the limiter grants no permits, so that nothing is sent; None if the limiter
            works.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - keywords of the client
        self.options = options
        self.trouble: str | None = None

    async def reach(self, limiter: Any) -> None:  # noqa: ANN401 - an extra
        """Ping the limiter's Redis until Redis answers for the first time. The limiter itself handles later outages."""
        from retailrocket_async.redis import RedisUnreachableError  # noqa: PLC0415 - an extra

        while True:
            try:
                await limiter.ping()
            except RedisUnreachableError as error:
                self.trouble = f"the limiter was never reached: {error}"
                await asyncio.sleep(_PING)
            else:
                self.trouble = None
                return


@asynccontextmanager
async def _limit(settings: RelaySettings, shop: str) -> AsyncGenerator[_Limit]:
    """Yield the limit of the settings, and close the limiter's Redis client when the block ends."""
    if settings.limiter is None:
        yield _Limit(rate_limit=RateLimit(requests=settings.rate) if settings.rate else None)
        return
    with needing("redis", "redis", what="--limiter"):
        from redis.asyncio import Redis  # noqa: PLC0415 - an extra

        from retailrocket_async.redis import RedisLimiter  # noqa: PLC0415
    try:
        redis: Any = cast("Any", Redis).from_url(settings.limiter)
    except (ValueError, TypeError):
        # `from None` hides the original error: its message may quote the address, which may contain a password.
        raise ConfigurationError("--limiter is not an address that redis-py can read") from None
    limiter = RedisLimiter(
        redis,
        RateLimit(requests=settings.rate),
        name=shop,
        replicas=settings.limiter_replicas,
        on_unreachable=settings.limiter_on_unreachable,
    )
    limit = _Limit(limiter=limiter)
    limit.trouble = "the limiter was not reached yet"
    reaching = asyncio.create_task(limit.reach(limiter))
    try:
        yield limit
    finally:
        reaching.cancel()
        await asyncio.wait({reaching})
        await redis.aclose()


def _serving_health() -> Any:  # noqa: ANN401 - an extra
    with needing("relay", "prometheus_client", "starlette", "uvicorn"):
        from retailrocket_async.relay import serving_health  # noqa: PLC0415 - an extra
    return serving_health


def _log_to_stderr() -> None:
    # Only the package's log is printed: httpx would log every URL, which contains the key.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("retailrocket_async")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
