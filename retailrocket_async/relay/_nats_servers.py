"""The servers of a NATS system: who we are there, and how we connect and publish."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import attrs

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import installed
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async.relay._library_call import answer_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from nats.aio.client import Client

logger = logging.getLogger("retailrocket_async")

ANSWER = 5.0
"""Seconds within which the server must answer."""


@attrs.frozen(kw_only=True)
class NatsServers:
    """Where NATS is, and who we are there."""

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
        """Check the settings, and that the library is there.

        User and password are taken out of the URLs, so that no message can quote them.
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
                # Without its cause, which quotes the address.
                raise ConfigurationError("an address of NATS is malformed") from None
            if parts.scheme not in {"nats", "tls"} or not parts.hostname:
                raise ConfigurationError("servers must be URLs such as 'nats://host:4222' or 'tls://host:4222'")
            user = user or (unquote(parts.username) if parts.username else None)
            password = password or (unquote(parts.password) if parts.password else None)
            urls.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        if not urls:
            raise ConfigurationError("servers must not be empty")
        return cls(urls=tuple(urls), user=user, password=password, tls=tls, name=name)

    async def connect(self, lost: Callable[[], None]) -> Client:
        """Return a connection that reconnects by itself from now on, and calls `lost` each time it was lost."""
        from nats.aio.client import Client as Connection  # noqa: PLC0415 - heavy, and needed by nobody else

        told = False

        async def fail(error: Exception) -> None:
            nonlocal told
            if not told:
                told = True
                write_log(
                    logger, logging.WARNING, "The connection to NATS fails, and is tried again: %s", _brief(error)
                )

        async def disconnected() -> None:
            lost()

        async def reconnected() -> None:
            nonlocal told
            told = False
            write_log(logger, logging.INFO, "The connection to NATS is there again")

        connection = Connection()
        try:
            # It may swallow the cancellation by a time-out, and try to connect for ever.
            await answer_of(
                connection.connect(
                    list(self.urls),
                    name=self.name,
                    user=self.user,
                    password=self.password,
                    tls=self.tls,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    error_cb=fail,
                    disconnected_cb=disconnected,
                    reconnected_cb=reconnected,
                ),
                ANSWER,
            )
        except BaseException as error:
            reason = _brief(connection.last_error or error)
            with suppress(Exception):
                await answer_of(connection.close(), ANSWER)
            if isinstance(error, TimeoutError):
                raise ConnectionError(f"NATS at {', '.join(self.urls)} cannot be reached: {reason}") from None
            raise
        return connection


async def publish_all(stream: Any, subject: str, messages: Sequence[tuple[bytes, dict[str, str]]]) -> list[Any]:
    """Publish messages in order, a few hundred at a time; return what the server answered to each, or the failure."""
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
