"""Publishes envelopes to NATS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._letter import raise_first
from retailrocket_async.relay._nats.servers import ANSWER, NatsServers, disconnect, publish_all

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from typing import Self

    from nats.aio.client import Client


class NatsSubject(Uncopyable):
    """Publishes envelopes to a subject that a JetStream stream stores; use it with `async with`.

    Args:
        servers: URLs of servers of one cluster, as for `NatsSource`.
        subject: the subject to publish to.
        user, password: the account to log in with; default the account in `servers`.
        tls: the TLS context; default None: TLS is used if a URL begins with ``tls://``.

    Raises:
        ConfigurationError: a value is out of range, or ``nats-py`` is not installed.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        subject: str,
        *,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._servers = NatsServers.of(servers, "publisher", user=user, password=password, tls=tls)
        check_texts(subject=subject)
        self._subject = subject
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        self._client = await self._servers.connect(lambda: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            await disconnect(client)

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order; return when the stream has confirmed all of them."""
        if self._client is None:
            raise RuntimeError("a NatsSubject publishes inside `async with`")
        stream = cast("Any", self._client).jetstream(timeout=ANSWER)
        raise_first(await publish_all(stream, self._subject, [(envelope, {}) for envelope in envelopes]))
