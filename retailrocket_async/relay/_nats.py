"""NATS JetStream as the relay's broker."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

from retailrocket_async import ConfigurationError
from retailrocket_async.relay._source import DeadLetter, Lag, Message

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

logger = logging.getLogger("retailrocket_async")

_ANSWER = 5.0
"""Seconds within which the server must answer."""

_GAP = 0.02
"""Seconds without a message after which a fetch takes what it has: the rest of a pull comes in one burst."""

_DUPLICATES = 3600.0
"""Seconds for which the dead-letter stream knows a message again that comes twice."""

_ACK, _NAK, _PROGRESS, _TERM = b"+ACK", b"-NAK", b"+WPI", b"+TERM"
_EXPIRED = "408"
_ABSENT = "404"
_MESSAGE_ID, _REASON, _DEDUPLICATE = "Retailrocket-Message-Id", "Retailrocket-Reason", "Nats-Msg-Id"


@attrs.frozen(kw_only=True)
class _Servers:
    """Where NATS is, and who we are there."""

    urls: tuple[str, ...]
    user: str | None
    password: str | None = attrs.field(repr=False)
    tls: ssl.SSLContext | None = attrs.field(repr=False)

    @classmethod
    def of(
        cls, servers: str | Sequence[str], user: str | None, password: str | None, tls: ssl.SSLContext | None
    ) -> _Servers:
        """Check the settings, and take user and password out of the URLs, so that no message can quote them."""
        urls: list[str] = []
        for server in [servers] if isinstance(servers, str) else servers:
            parts = urlsplit(server)
            if parts.scheme not in {"nats", "tls"} or not parts.hostname:
                raise ConfigurationError("servers must be URLs such as 'nats://host:4222' or 'tls://host:4222'")
            user = user or (unquote(parts.username) if parts.username else None)
            password = password or (unquote(parts.password) if parts.password else None)
            urls.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        if not urls:
            raise ConfigurationError("servers must not be empty")
        return cls(urls=tuple(urls), user=user, password=password, tls=tls)

    async def connect(self, lost: Callable[[], None]) -> Client:
        """Return a connection that reconnects by itself from now on, and calls `lost` each time it was lost."""
        from nats.aio.client import Client as Connection  # noqa: PLC0415 - heavy, and needed by nobody else

        told = False

        async def fail(error: Exception) -> None:
            nonlocal told
            if not told:
                told = True
                logger.warning("The connection to NATS fails, and is tried again: %s", _brief(error))

        async def disconnected() -> None:
            lost()

        async def reconnected() -> None:
            nonlocal told
            told = False
            logger.info("The connection to NATS is there again")

        connection = Connection()
        try:
            async with asyncio.timeout(_ANSWER):
                await connection.connect(
                    list(self.urls),
                    name="retailrocket-relay",
                    user=self.user,
                    password=self.password,
                    tls=self.tls,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    error_cb=fail,
                    disconnected_cb=disconnected,
                    reconnected_cb=reconnected,
                )
        except BaseException as error:
            reason = _brief(connection.last_error or error)
            await connection.close()
            if isinstance(error, TimeoutError):
                raise ConnectionError(f"NATS at {', '.join(self.urls)} cannot be reached: {reason}") from None
            raise
        return connection


class NatsSource:
    """A relay's view of a JetStream stream, through a durable pull consumer.

    Any number of relays may share the consumer: each message is handed to one of them. `open` creates the stream
    (kept on disk; a message is removed once it is settled), the consumer and the stream for dead letters where they
    are missing.

    A message's id is its number in the stream, e.g. ``"1742"``.

    Args:
        servers: URLs of servers of one cluster, as ``"nats://host:4222"`` or ``"tls://host:4222"``; user and password
            may stand in one.
        stream: the name of the stream.
        subject: what services publish to; default the name of the stream.
        durable: the name of the consumer; default ``"relay"``.
        dead: the name of the dead letters' stream, and their subject; default the name of the stream with ``"-dead"``.
        ack_wait: seconds of the lease of a consumer that is created; default 30. One that exists keeps its own.
        max_ack_pending: messages that a consumer that is created hands out unsettled, to all relays together; default
            10,000. Below what a relay has in flight, it slows the relay down.
        create: whether to create what is missing; default True.
        user, password: of an account; default those in `servers`.
        tls: default what the URLs say.

    Raises:
        ConfigurationError: a value out of range, or ``nats-py`` is not installed.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        stream: str,
        subject: str | None = None,
        durable: str = "relay",
        *,
        dead: str | None = None,
        ack_wait: float = 30.0,
        max_ack_pending: int = 10_000,
        create: bool = True,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        _installed()
        if not isinstance(ack_wait, int | float) or not 0.1 <= ack_wait <= 86_400:
            raise ConfigurationError(f"ack_wait must be 0.1 to 86400 seconds, not {ack_wait!r}")
        if type(max_ack_pending) is not int or max_ack_pending < 1:
            raise ConfigurationError(f"max_ack_pending must be an int of 1 or more, not {max_ack_pending!r}")
        self.lease: float | None = float(ack_wait)
        self._servers = _Servers.of(servers, user, password, tls)
        self._stream = _name("stream", stream)
        self._subject = subject or stream
        self._durable = _name("durable", durable)
        self._dead = _name("dead", dead or f"{stream}-dead")
        self._ack_wait = float(ack_wait)
        self._max_ack_pending = max_ack_pending
        self._create = create
        self._connection: Client | None = None
        self._inbox = ""
        # By their numbers in the stream, with the subject that answers to them: what came and was not fetched,
        # and what was fetched and not settled.
        self._arrived: dict[int, Msg] = {}
        self._held: dict[int, str] = {}
        self._news = asyncio.Event()
        self._trouble: str | None = None
        # How many messages the server still owes us for what we asked, and until when.
        self._owed = 0
        self._owed_until = 0.0

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return a source for a URL as ``"nats://host:4222/stream?durable=relay&subject=events&dead=events-dead"``.

        All of the query may be left out; ``create=no`` creates nothing. User and password come from the URL or, better,
        from the environment: ``RETAILROCKET_RELAY_USER``, ``RETAILROCKET_RELAY_PASSWORD``.

        Raises:
            ConfigurationError: the URL is none of these.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = options.keys() - {"durable", "subject", "dead", "create"}
        if unknown:
            raise ConfigurationError(f"a URL of NATS has no option {', '.join(sorted(unknown))}")
        create = options.pop("create", "yes")
        if create not in {"yes", "no"}:
            raise ConfigurationError("create must be 'yes' or 'no'")
        return cls(
            [f"{parts.scheme}://{host}" for host in _hosts(parts.netloc)],
            unquote(parts.path.removeprefix("/")),
            options.get("subject"),
            options.get("durable", "relay"),
            dead=options.get("dead"),
            create=create == "yes",
            user=os.environ.get("RETAILROCKET_RELAY_USER"),
            password=os.environ.get("RETAILROCKET_RELAY_PASSWORD"),
        )

    def __repr__(self) -> str:
        return f"NatsSource({', '.join(self._servers.urls)}, stream={self._stream!r}, durable={self._durable!r})"

    async def open(self) -> None:
        """Connect, and create the stream, the consumer and the dead letters' stream where they are missing."""
        if self._connection is None or self._connection.is_closed:
            connection = await self._servers.connect(self._disconnected)
            self._inbox = connection.new_inbox()
            # Before anything that can be cancelled: whatever is connected is closed in the end.
            self._connection = connection
            await connection.subscribe(self._inbox, cb=self._receive)
        self._trouble = None
        stream = self._jetstream()
        await self._ensure_streams(stream)
        await self._ensure_consumer(stream)

    async def _ensure_streams(self, stream: JetStreamContext) -> None:
        from nats.js.api import RetentionPolicy, StreamConfig  # noqa: PLC0415
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        for config in (
            StreamConfig(name=self._stream, subjects=[self._subject], retention=RetentionPolicy.WORK_QUEUE),
            StreamConfig(name=self._dead, subjects=[self._dead], duplicate_window=_DUPLICATES),
        ):
            try:
                await stream.stream_info(str(config.name))
            except NotFoundError:
                if not self._create:
                    raise
                await stream.add_stream(config)

    async def _ensure_consumer(self, stream: JetStreamContext) -> None:
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
        self.lease = config.ack_wait or self._ack_wait

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first; none after `wait` seconds without any."""
        connection = self._connected()
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        if len(self._arrived) < most:
            await self._ask(connection, most, wait)
        # First for as long as it takes, then for as long as they keep coming.
        while len(self._arrived) < most:
            until = min(end, clock() + _GAP) if self._arrived else end
            self._news.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                break
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise ConnectionError(f"NATS hands out nothing: {trouble}")
            if self._arrived and self._owed == 0:
                break
        return [self._hand_out(number) for number in sorted(self._arrived)[:most]]

    async def _ask(self, connection: Client, most: int, wait: float) -> None:
        """Have the server owe us no more than `most` messages, together with those that are here."""
        now = asyncio.get_running_loop().time()
        if now > self._owed_until:
            self._owed = 0
        ask = most - len(self._arrived) - self._owed
        if ask > 0:
            self._owed += ask
            # One that only looks leaves the server as long as an answer takes.
            wait = max(wait, 0.1)
            self._owed_until = max(self._owed_until, now + wait + _ANSWER)
            await connection.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}",
                b'{"batch":%d,"expires":%d}' % (ask, wait * 1e9),
                reply=self._inbox,
            )

    def _hand_out(self, number: int) -> Message:
        message = self._arrived.pop(number)
        self._held[number] = message.reply
        return Message(
            id=str(number),
            body=message.data,
            deliveries=message.metadata.num_delivered,
            published_at=message.metadata.timestamp.timestamp(),
            handle=number,
        )

    async def _receive(self, message: Msg) -> None:
        """Take what the server sends: a message, or news of what we asked for."""
        status = message.headers.get("Status") if message.headers and not message.data else None
        if status is None:
            number = message.metadata.sequence.stream
            self._owed = max(0, self._owed - 1)
            if number in self._held:
                # Its lease ran out while the connection was down; we are at work on it all the same.
                self._held[number] = message.reply
            else:
                self._arrived[number] = message
        else:
            left = (message.headers or {}).get("Nats-Pending-Messages")
            self._owed = max(0, self._owed - int(left)) if left else 0
            if status not in {_EXPIRED, _ABSENT}:
                self._trouble = f"{status} {(message.headers or {}).get('Description', '')}".strip()
        self._news.set()

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Take messages back for good: the dead are published to their stream first, then all are acknowledged.

        Acknowledgements of one connection are handled in their order, so the server is asked to confirm the last one
        only: one round trip, however many there are.
        """
        connection = self._connected()
        dead = [(message, reason) for message, reason in dead if message.handle in self._held]
        await self._bury(dead)
        answers = [(self._held[m.handle], _ACK) for m in done if m.handle in self._held]
        answers += [(self._held[m.handle], _TERM) for m, _ in dead]
        if not answers:
            return
        await _tell(connection, answers[:-1])
        reply, verb = answers[-1]
        await connection.request(reply, verb, timeout=_ANSWER)
        for message in [*done, *(message for message, _ in dead)]:
            self._held.pop(message.handle, None)

    async def _bury(self, dead: Sequence[tuple[Message, str]]) -> None:
        # One that comes twice, since the relay died between the copy and the answer, is known by its number.
        await _publish_all(
            self._jetstream(),
            self._dead,
            [
                (
                    message.body,
                    {
                        _DEDUPLICATE: f"{self._stream}:{message.id}",
                        _MESSAGE_ID: message.id,
                        _REASON: reason.encode("ascii", "backslashreplace").decode(),
                    },
                )
                for message, reason in dead
            ],
        )

    async def extend(self, messages: Sequence[Message]) -> None:
        """Tell the server that they are being worked on, those included that have arrived and wait to be fetched."""
        replies = [self._held[m.handle] for m in messages if m.handle in self._held]
        replies += [message.reply for message in self._arrived.values()]
        await _tell(self._connected(), [(reply, _PROGRESS) for reply in replies])

    async def release(self, messages: Sequence[Message]) -> None:
        """Let anybody have them at once, and what has arrived since."""
        connection = self._connected()
        replies = [self._held.pop(m.handle) for m in messages if m.handle in self._held]
        replies += [message.reply for message in self._arrived.values()]
        self._arrived.clear()
        await _tell(connection, [(reply, _NAK) for reply in replies])
        await connection.flush(timeout=int(_ANSWER))

    async def lag(self) -> Lag:
        """Return how far the relays of this consumer are behind."""
        info = await self._jetstream().consumer_info(self._stream, self._durable)
        return Lag(waiting=info.num_pending, pending=info.num_ack_pending)

    async def aclose(self) -> None:
        """Disconnect; what was not settled is handed out again when its lease is over."""
        connection, self._connection = self._connection, None
        self._held.clear()
        self._arrived.clear()
        if connection is not None:
            await connection.close()

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, `most` at most; one request each."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        stream = self._jetstream()
        letters: list[DeadLetter] = []
        number = 1
        with suppress(NotFoundError):
            while len(letters) < most:
                found: Any = await stream.get_msg(self._dead, seq=number, subject=self._dead, next=True)
                headers: dict[str, str] = found.headers or {}
                letters.append(
                    DeadLetter(
                        id=str(found.seq),
                        message_id=headers.get(_MESSAGE_ID, ""),
                        body=found.data or b"",
                        reason=headers.get(_REASON, ""),
                        died_at=found.time.timestamp(),
                    )
                )
                number = found.seq + 1
        return letters

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again; one that was published and not removed is not published twice."""
        letters = await self.list_dead(most)
        again = [(letter.body, {_DEDUPLICATE: f"{self._dead}:{letter.id}"}) for letter in letters]
        await _publish_all(self._jetstream(), self._subject, again)
        return await self._remove(letters)

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters for good; return how many."""
        return await self._remove(await self.list_dead(most))

    async def _remove(self, letters: Sequence[DeadLetter]) -> int:
        if letters:
            await self._jetstream().purge_stream(self._dead, seq=int(letters[-1].id) + 1)
        return len(letters)

    def _connected(self) -> Client:
        if self._connection is None or not self._connection.is_connected:
            raise ConnectionError(f"not connected to NATS at {', '.join(self._servers.urls)}")
        return self._connection

    def _jetstream(self) -> JetStreamContext:
        return self._connected().jetstream(timeout=_ANSWER)

    def _disconnected(self) -> None:
        # Whoever reconnects is owed nothing.
        self._owed = 0


class NatsSubject:
    """Publishes envelopes to a subject that a JetStream stream listens to.

    Args:
        servers: URLs of servers of one cluster, as for `NatsSource`.
        subject: where to.
        user, password: of an account; default those in `servers`.
        tls: default what the URLs say.

    Raises:
        ConfigurationError: a value out of range, or ``nats-py`` is not installed.
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
        _installed()
        self._servers = _Servers.of(servers, user, password, tls)
        if not subject:
            raise ConfigurationError("subject must not be empty")
        self._subject = subject
        self._connection: Client | None = None

    async def __aenter__(self) -> Self:
        self._connection = await self._servers.connect(lambda: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order; return when the stream has confirmed all of them."""
        if self._connection is None:
            raise RuntimeError("a NatsSubject publishes inside `async with`")
        stream = self._connection.jetstream(timeout=_ANSWER)
        await _publish_all(stream, self._subject, [(envelope, {}) for envelope in envelopes])


async def _publish_all(
    stream: JetStreamContext, subject: str, messages: Sequence[tuple[bytes, dict[str, str]]]
) -> None:
    """Publish messages in order, a few hundred at a time, and raise the first failure after all have an answer."""
    for start in range(0, len(messages), 500):
        outcomes = await asyncio.gather(
            *(
                stream.publish(subject, body, headers=headers or None)
                for body, headers in messages[start : start + 500]
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


async def _tell(connection: Client, answers: Iterable[tuple[str, bytes]]) -> None:
    """Answer to messages, and let others run now and then."""
    for count, (reply, verb) in enumerate(answers, start=1):
        await connection.publish(reply, verb)
        if count % 100 == 0:
            await asyncio.sleep(0)


def _hosts(netloc: str) -> list[str]:
    """Return the servers of ``user:password@a:4222,b:4222``, the first of them with the user."""
    return netloc.split(",")


def _name(field: str, value: str) -> str:
    """Check a name of JetStream."""
    if not value or not value.isprintable() or any(letter in " .*>/\\" for letter in value):
        raise ConfigurationError(f"{field} must be a name without spaces or any of . * > / \\, not {value!r}")
    return value


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _installed() -> None:
    try:
        import nats.aio.client  # noqa: F401, PLC0415
    except ImportError:
        raise ConfigurationError("NATS needs nats-py: install 'retailrocket-async[nats]'") from None
