"""The source of a relay that reads from NATS JetStream."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._address import Address, account_of_environment
from retailrocket_async.relay._nats.dead_letters import NatsDeadLetters
from retailrocket_async.relay._nats.inbox import ACK, Inbox
from retailrocket_async.relay._nats.servers import ANSWER, NatsConnection, NatsServers
from retailrocket_async.relay._source import DeadLetter, Lag, Message

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence
    from typing import Self

    from nats.aio.client import Client

_DUPLICATES = 3600.0
"""Number of seconds for which the stream of dead letters remembers the id of a published letter. Within this time, the
stream refuses a second letter with the same id as a duplicate."""

_NAK, _PROGRESS, _TERM = b"-NAK", b"+WPI", b"+TERM"


class NatsSource(Uncopyable):
    """Reads messages from a JetStream stream through a durable pull consumer.

    Any number of relays may share the consumer: each message is handed to one of the relays. `open` creates the stream,
    the consumer and the stream of dead letters if they are missing. If `open` creates the stream, the server stores the
    stream on disk, and removes each message as soon as the message is settled.

    A message's id is its number in the stream, e.g. ``"1742"``.

    Args:
        servers: URLs of servers of one cluster, as ``"nats://host:4222"`` or ``"tls://host:4222"``; a URL may contain
            user and password.
        stream: the name of the stream.
        subject: the subject to which services publish; default the name of the stream.
        durable: the name of the consumer; default ``"relay"``.
        dead: the name of the stream of dead letters, also used as its subject; default ``"<stream>-dead"``.
        name: the name of this relay in the server's list of connections; default ``"relay"``.
        ack_wait: length of the lease in seconds; default 30. If the consumer exists, its ``ack_wait`` must not be
            shorter.
        max_ack_pending: largest number of messages that are handed out and not settled, all relays together; default
            10,000. Used only if `open` creates the consumer. A value below a relay's window slows the relay down.
        create: whether `open` creates missing streams and a missing consumer; default True.
        user, password: the account to log in with; default the account in `servers`.
        tls: the TLS context; default None: TLS is used if a URL begins with ``tls://``.

    Raises:
        ConfigurationError: a value is out of range, or ``nats-py`` is not installed.
    """

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        servers: str | Sequence[str],
        stream: str,
        subject: str | None = None,
        durable: str = "relay",
        *,
        name: str = "relay",
        dead: str | None = None,
        ack_wait: float = 30.0,
        max_ack_pending: int = 10_000,
        create: bool = True,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if not isinstance(ack_wait, int | float) or not 0.1 <= ack_wait <= 86_400:
            raise ConfigurationError(f"ack_wait must be 0.1 to 86400 seconds, not {ack_wait!r}")
        if type(max_ack_pending) is not int or max_ack_pending < 1:
            raise ConfigurationError(f"max_ack_pending must be an int of 1 or more, not {max_ack_pending!r}")
        self.lease: float | None = float(ack_wait)
        self._connection = NatsConnection(NatsServers.of(servers, name, user=user, password=password, tls=tls))
        self._stream = _name("stream", stream)
        self._subject = subject or stream
        check_texts(subject=self._subject)
        self._durable = _name("durable", durable)
        self._ack_wait = float(ack_wait)
        self._max_ack_pending = max_ack_pending
        self._create = create
        self._inbox = Inbox(self._connection, stream, durable)
        self._letters = NatsDeadLetters(
            self._connection,
            _name("dead", dead or f"{stream}-dead"),
            stream=stream,
            subject=self._subject,
            durable=durable,
        )

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``nats://nats:4222/events?durable=relay``.

        Args:
            url: the address: ``nats://`` or, with TLS, ``tls://``; one or more servers, separated by commas; the
                stream's name. Options after the question mark: ``subject``, ``durable``, ``dead``, ``ack_wait``
                (seconds) and ``create`` (``yes`` or ``no``); see the constructor. User and password are read from the
                address or, better, from the environment variables ``RETAILROCKET_RELAY_USER`` and
                ``RETAILROCKET_RELAY_PASSWORD``.
            name: see the constructor.

        Raises:
            ConfigurationError: the address is invalid. The error's message does not show the address.
        """
        address = Address.parse(url, "subject", "durable", "dead", "ack_wait", "create")
        parts = address.split("NATS")
        user, password = account_of_environment()
        return cls(
            [f"{parts.scheme}://{server}" for server in parts.netloc.split(",")],
            unquote(parts.path.removeprefix("/")),
            address.options.get("subject"),
            address.options.get("durable", "relay"),
            name=name,
            dead=address.options.get("dead"),
            ack_wait=address.seconds("ack_wait", 30),
            create=address.flag("create", default=True),
            user=user,
            password=password,
        )

    def __repr__(self) -> str:
        urls = ", ".join(self._connection.servers.urls)
        return f"NatsSource({urls}, stream={self._stream!r}, durable={self._durable!r})"

    async def open(self) -> None:
        """Connect, and create the stream, the consumer and the stream of dead letters if they are missing."""
        is_new = await self._connection.open(self._inbox.disconnected)
        await self._inbox.subscribe(anew=is_new)
        stream = self._connection.jetstream
        await self._ensure_streams(stream)
        await self._ensure_consumer(stream)

    async def _ensure_streams(self, stream: Any) -> None:
        from nats.js.api import RetentionPolicy, StreamConfig  # noqa: PLC0415
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        dead = self._letters.name
        for config in (
            StreamConfig(name=self._stream, subjects=[self._subject], retention=RetentionPolicy.WORK_QUEUE),
            StreamConfig(name=dead, subjects=[dead], duplicate_window=_DUPLICATES),
        ):
            try:
                await stream.stream_info(str(config.name))
            except NotFoundError:
                if not self._create:
                    raise
                await stream.add_stream(config)

    async def _ensure_consumer(self, stream: Any) -> None:
        from nats.js.api import AckPolicy, ConsumerConfig  # noqa: PLC0415
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            info = await stream.consumer_info(self._stream, self._durable)
        except NotFoundError:
            if not self._create:
                raise
            config = ConsumerConfig(
                durable_name=self._durable,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait,
                max_ack_pending=self._max_ack_pending,
                max_deliver=-1,
                filter_subject=self._subject,
            )
            info = await stream.add_consumer(self._stream, config)
        config = info.config
        if config.ack_policy != AckPolicy.EXPLICIT or config.deliver_subject:
            raise ConfigurationError(f"the consumer {self._durable!r} must be a pull consumer with explicit acks")
        if (config.ack_wait or math.inf) < self._ack_wait:
            raise ConfigurationError(
                f"the consumer {self._durable!r} has an ack_wait of {config.ack_wait:g} s: give it, too"
            )

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first, or an empty list if no message arrives within `wait` seconds."""
        return await self._inbox.fetch(most, wait)

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Publish the dead letters to their stream, then acknowledge all messages."""
        client, held = self._connection.client, self._inbox.held
        dead = [(message, reason) for message, reason in dead if message.handle in held]
        await self._letters.keep(dead)
        answers = [(held[message.handle], ACK) for message in done if message.handle in held]
        answers += [(held[message.handle], _TERM) for message, _ in dead]
        await _confirm(client, answers)
        self._inbox.settled([*done, *(message for message, _ in dead)])

    async def extend(self, messages: Sequence[Message]) -> None:
        """Extend the leases of `messages`, and of all messages that were received and not fetched yet."""
        held, arrived = self._inbox.held, self._inbox.arrived
        replies = [held[message.handle] for message in messages if message.handle in held]
        replies += [message.reply for message in arrived.values()]
        await _answer(self._connection.client, [(reply, _PROGRESS) for reply in replies])

    async def release(self, messages: Sequence[Message]) -> None:
        """Return to the server: `messages`, and all messages that were received and not fetched yet.

        The server hands out the messages to other relays at once; a server of version 2.9 hands out some messages only
        when their leases expire. No further messages can be fetched until the next `open`.
        """
        client, held, arrived = self._connection.client, self._inbox.held, self._inbox.arrived
        # Without `unsubscribe`, the server could send the messages to this relay again, as an answer to its last
        # request.
        await self._inbox.unsubscribe()
        places = [message.handle for message in messages if message.handle in held]
        replies = [held[place] for place in places] + [message.reply for message in arrived.values()]
        await _confirm(client, [(reply, _NAK) for reply in replies])
        arrived.clear()
        for place in places:
            held.pop(place, None)

    async def lag(self) -> Lag:
        """Return how many messages are not settled, for all relays that share this consumer together."""
        info = await self._connection.jetstream.consumer_info(self._stream, self._durable)
        return Lag(waiting=info.num_pending, pending=info.num_ack_pending)

    async def aclose(self) -> None:
        """Disconnect. If messages are not settled, the server hands them out again when their leases expire."""
        self._inbox.forget()
        await self._connection.aclose()

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, at most `most`. Sends one request per letter."""
        return await self._letters.oldest(most)

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, then remove them; return the number published.

        Letters whose bodies were shortened are neither published nor removed.
        """
        return await self._letters.replay(most)

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters, at most `most`; return the number removed."""
        return await self._letters.purge(most)


async def _answer(client: Client, answers: Iterable[tuple[str, bytes]]) -> None:
    """Send an answer, e.g. an acknowledgement, for each message; let other tasks run after every 100 answers."""
    for count, (reply, verb) in enumerate(answers, start=1):
        await client.publish(reply, verb)
        if count % 100 == 0:
            await asyncio.sleep(0)


async def _confirm(client: Client, answers: Sequence[tuple[str, bytes]]) -> None:
    """Send an answer for each message, and return when the server has processed all answers.

    The server processes the answers of one connection in order. So only the last answer needs a confirmation, and the
    call takes one round trip.
    """
    if answers:
        await _answer(client, answers[:-1])
        await client.request(*answers[-1], timeout=ANSWER)


def _name(field: str, value: str) -> str:
    """Return `value` if it is a valid name in JetStream; raise ConfigurationError otherwise."""
    if not value or not value.isprintable() or any(letter in " .*>/\\" for letter in value):
        raise ConfigurationError(f"{field} must be a name without spaces or any of . * > / \\, not {value!r}")
    return value
