"""The servers of a NATS system, and a connection to them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import attrs

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import installed
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async.relay._library_call import result_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from nats.aio.client import Client

logger = logging.getLogger("retailrocket_async")

ANSWER = 5.0
"""Seconds to wait for an answer of a NATS server."""


@attrs.frozen(kw_only=True)
class NatsServers:
    """Stores the servers' addresses and the account, and connects to the servers."""

    urls: tuple[str, ...]
    user: str | None
    password: str | None = attrs.field(repr=False)
    tls: ssl.SSLContext | None = attrs.field(repr=False)
    name: str

    @classmethod
    def of(
        cls,
        servers: str | Sequence[str],
        name: str,
        *,
        user: str | None,
        password: str | None,
        tls: ssl.SSLContext | None,
    ) -> NatsServers:
        """Check the settings and return the servers.

        User and password are removed from the URLs, so that no error message can quote them.

        Raises:
            ConfigurationError: a setting is invalid, or ``nats-py`` is not installed.
        """
        if not installed("nats"):
            raise ConfigurationError(
                'NATS needs nats-py, which is not installed: pip install "retailrocket-async[nats]"'
            )
        urls: list[str] = []
        for server in [servers] if isinstance(servers, str) else servers:
            check_texts(servers=server)
            try:
                parts = urlsplit(server)
            except ValueError:
                # `from None` hides the original error: its message quotes the address, which may contain a password.
                raise ConfigurationError("an address of NATS is malformed") from None
            if parts.scheme not in {"nats", "tls"} or not parts.hostname:
                raise ConfigurationError("servers must be URLs such as 'nats://host:4222' or 'tls://host:4222'")
            user = user or (unquote(parts.username) if parts.username else None)
            password = password or (unquote(parts.password) if parts.password else None)
            urls.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        if not urls:
            raise ConfigurationError("servers must not be empty")
        return cls(urls=tuple(urls), user=user, password=password, tls=tls, name=name)

    async def connect(self, on_disconnect: Callable[[], None]) -> Client:
        """Connect, and return nats-py's client, which reconnects by itself.

        Args:
            on_disconnect: called each time the connection is lost.

        Raises:
            ConnectionError: no server answers within `ANSWER` seconds.
            Exception: any other error of ``nats-py``.
        """
        from nats.aio.client import Client as Connection  # noqa: PLC0415 - slow to import, and needed here only

        logged = False

        async def failed(error: Exception) -> None:
            nonlocal logged
            if not logged:
                logged = True
                text = "The connection to NATS fails, and is tried again: %s"
                write_log(logger, logging.WARNING, text, _brief(error))

        async def disconnected() -> None:
            on_disconnect()

        async def reconnected() -> None:
            nonlocal logged
            logged = False
            write_log(logger, logging.INFO, "The connection to NATS is there again")

        connection = Connection()
        try:
            # `result_of` limits the time even if nats-py swallows the cancellation and would try to connect for ever.
            await result_of(
                connection.connect(
                    list(self.urls),
                    name=self.name,
                    user=self.user,
                    password=self.password,
                    tls=self.tls,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    error_cb=failed,
                    disconnected_cb=disconnected,
                    reconnected_cb=reconnected,
                ),
                ANSWER,
            )
        except BaseException as error:
            reason = _brief(connection.last_error or error)
            with suppress(Exception):
                await result_of(connection.close(), ANSWER)
            if isinstance(error, TimeoutError):
                raise ConnectionError(f"NATS at {', '.join(self.urls)} cannot be reached: {reason}") from None
            raise
        return connection


class NatsConnection:
    """The connection of a source to its NATS servers. A closed connection can be opened again.

    Args:
        servers: the servers to connect to.
    """

    def __init__(self, servers: NatsServers) -> None:
        self.servers = servers
        self._client: Client | None = None

    async def open(self, on_disconnect: Callable[[], None]) -> bool:
        """Connect, unless the connection is open already; return True if a new connection was made."""
        if self._client is not None and not self._client.is_closed:
            return False
        # There is no `await` between the return of `connect` and the assignment. So a cancellation cannot leave an open
        # connection that nothing closes.
        self._client = await self.servers.connect(on_disconnect)
        return True

    @property
    def client(self) -> Client:
        """The client of nats-py.

        Raises:
            ConnectionError: the client is not connected.
        """
        if self._client is None or not self._client.is_connected:
            raise ConnectionError(f"not connected to NATS at {', '.join(self.servers.urls)}")
        return self._client

    @property
    def jetstream(self) -> Any:
        """The JetStream context of nats-py.

        Raises:
            ConnectionError: the client is not connected.
        """
        return cast("Any", self.client).jetstream(timeout=ANSWER)

    async def aclose(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await disconnect(client)


async def disconnect(client: Client) -> None:
    """Close a connection. If this call is cancelled, the connection is still closed, in the background."""
    await asyncio.shield(client.close())


async def publish_all(stream: Any, subject: str, messages: Sequence[tuple[bytes, dict[str, str]]]) -> list[Any]:
    """Publish messages in order, up to 500 at a time; return for each message the server's answer or the exception."""
    answers: list[Any] = []
    for start in range(0, len(messages), 500):
        answers += await asyncio.gather(
            *(
                stream.publish(subject, body, headers=headers or None)
                for body, headers in messages[start : start + 500]
            ),
            return_exceptions=True,
        )
    return answers


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
