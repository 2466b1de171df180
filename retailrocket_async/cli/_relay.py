"""``relay``: from a broker to the API, until told to stop."""

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
from retailrocket_async.cli._signals import ending_signals
from retailrocket_async.cli._terminal import FAILED, fail, note, one_sentence
from retailrocket_async.relay import Relay, RelaySettings, Source, source_from_url

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = "RETAILROCKET_RELAY_SOURCE"
NAME = "RETAILROCKET_RELAY_NAME"

_PING = 1.0
"""Seconds between two questions to a limiter's Redis that has never answered."""

_UNSET = RelaySettings(source="unset")

EPILOG = f"""
\b
[bold]The source[/bold], an address; a password in it belongs in {SOURCE}, not in an argument:
  redis://HOST:6379/0?stream=events&group=relay     Redis Streams, extra redis
  kafka://HOST:9092/...                             Kafka, extra kafka
  nats://HOST:4222/...                              NATS JetStream, extra nats
What stands behind the question mark is in the documentation of the relay.

Every message is one envelope, e.g. {{"view": {{"sessionExternalId": "a1b2c3", "productId": 42}}}}. It is acknowledged
once its event has an outcome: delivered, or kept as a dead letter (refused, or no event). While the API is down or the
key is refused, what was read is held, and no more is read. Nothing is lost whatever ends the relay; after a crash up to
--window events are delivered twice.

/livez, /readyz and /metrics (Prometheus) are served on --health-host and --health-port.

\b
[bold]Examples[/bold]
  retailrocket-async relay --source "redis://localhost:6379/0?stream=events"
  retailrocket-async relay --name relay-2 --health-port 8082
  retailrocket-async relay-dead list

[bold]Exit status[/bold]: 0 stopped by SIGTERM or Ctrl-C and everything is settled, 1 something could not be settled and
will be delivered again, 2 wrong arguments or configuration, 130 or 143 stopped at once by a second signal.
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
        help="What the broker knows this relay by; default the host's name. It must stay the same when the relay is "
        "started again, and relays that run at once need different ones.",
    ),
]


class OnUnreachable(StrEnum):
    """What `RedisLimiter` takes for its `on_unreachable`."""

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
            help="Programs that share the limit at most, for the time in which that Redis does not answer; default as "
            "many as were seen in the last minute.",
        ),
    ] = None,
    limiter_on_unreachable: Annotated[
        OnUnreachable,
        typer.Option(
            envvar="RETAILROCKET_RELAY_LIMITER_ON_UNREACHABLE",
            help="What happens in that time: each program keeps to its share, or waits, or fails and tries again.",
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
            help="Messages read and not settled, at most: so many may be delivered twice after a crash.",
        ),
    ] = _UNSET.window,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            envvar="RETAILROCKET_RELAY_GRACE",
            metavar="SECONDS",
            help="How long SIGTERM and Ctrl-C wait for what was read to be delivered.",
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
    health_host: Annotated[
        str,
        typer.Option(
            envvar="RETAILROCKET_RELAY_HEALTH_HOST",
            help="Address to serve health and metrics on; 0.0.0.0 for all of this machine.",
        ),
    ] = _UNSET.health_host,
    health_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, envvar="RETAILROCKET_RELAY_HEALTH_PORT", help="Port of the same; 0 for any free one."
        ),
    ] = _UNSET.health_port,
    allow_insecure_http: AllowInsecureHttp = False,
) -> None:
    """Deliver the events that services publish to Redis Streams, Kafka or NATS.

    Run it as a service: it goes on until it is told to stop, through restarts of the broker and outages of the API.
    """
    with one_sentence():
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
            health_host=health_host,
            health_port=health_port,
        )
        if settings.limiter is not None and not settings.rate:
            fail("--limiter shares a limit: --rate says which, and must not be 0")
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
    """Return the source that the options name, not open; without any, leave with a sentence that says how to."""
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
            trouble=lambda: limit.trouble,
        )
        signals: list[int] = []
        running = asyncio.create_task(_serve(relay, client, settings, serving_health))

        def interrupt(number: int) -> None:
            signals.append(number)
            if len(signals) == 1:
                note(f"{signal.Signals(number).name}: delivering what was read, {settings.grace:g} s at most")
                relay.stop()
            else:
                running.cancel()

        with ending_signals(interrupt), sparing_collector():
            await asyncio.wait({running})
    stats = relay.stats()
    note(
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
        fail(
            f"cannot listen on {settings.health_host}, port {settings.health_port}: {error.strerror or error}; "
            "--health-port takes another one"
        )
    try:
        note(f"relay {settings.name}: health and metrics at {root}")
        return await relay.run()
    finally:
        await serving.__aexit__(None, None, None)


class _Limit:
    """The limit that is the relay's own, or the shop's.

    Attributes:
        options: the client's keywords for it.
        trouble: why it cannot be kept, in one line: nothing is sent then. None otherwise.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as the client takes them
        self.options = options
        self.trouble: str | None = None

    async def reach(self, limiter: Any) -> None:  # noqa: ANN401 - an extra
        """Ask the limiter's Redis until it answers for the first time: what comes later is an outage."""
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
    """Give the limit that is the relay's own, or the shop's."""
    if settings.limiter is None:
        yield _Limit(rate_limit=RateLimit(requests=settings.rate) if settings.rate else None)
        return
    try:
        from redis.asyncio import Redis  # noqa: PLC0415 - an extra

        from retailrocket_async.redis import RedisLimiter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        fail('--limiter needs redis: pip install "retailrocket-async[redis]"')
    try:
        redis: Any = cast("Any", Redis).from_url(settings.limiter)
    except (ValueError, TypeError):
        # Without its cause, which may quote the address.
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
    try:
        from retailrocket_async.relay import serving_health  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in ("prometheus_client", "starlette", "uvicorn"):
            raise
        fail(f'this command needs {library.replace("_", "-")}: pip install "retailrocket-async[relay]"')
    return serving_health


def _log_to_stderr() -> None:
    # Our own log alone: httpx, say, logs every address, and with it the key.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("retailrocket_async")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
