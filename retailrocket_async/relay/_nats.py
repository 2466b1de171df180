"""NATS JetStream as the relay's broker."""

from __future__ import annotations

import asyncio
import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._address import split_url
from retailrocket_async.relay._letter import letter_of, may_be_replayed, next_limit, raise_first
from retailrocket_async.relay._nats_servers import ANSWER, NatsServers, publish_all
from retailrocket_async.relay._source import DeadLetter, Lag, Message

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence
    from typing import Self

    from nats.aio.client import Client
    from nats.aio.msg import Msg

_GAP = 0.02
"""Seconds without a message after which a fetch takes what it has: the rest of a pull comes in one burst."""

_DUPLICATES = 3600.0
"""Seconds for which the dead-letter stream knows a message again that comes twice."""

_CHUNK = 500
"""Dead letters that are published again at once."""

_REMEMBERED = 20_000
"""Settled messages that are known again, should the server hand them out once more."""

_HEADERS = 4096
"""Bytes that the headers of a dead letter take at most."""

_LONGEST_REASON = 2000
"""Letters of a dead letter's reason at most, once it is ASCII."""

_ACK, _NAK, _PROGRESS, _TERM = b"+ACK", b"-NAK", b"+WPI", b"+TERM"
_EXPIRED = "408"
_ABSENT = "404"
_MESSAGE_ID, _REASON, _DEDUPLICATE = "Retailrocket-Message-Id", "Retailrocket-Reason", "Nats-Msg-Id"
_SIZE, _SHA256 = "Retailrocket-Size", "Retailrocket-Sha256"

_TOO_LARGE = 10054
"""JetStream's code for a message larger than its stream takes."""


class _Place(NamedTuple):
    """Which message it is: a number alone would be another one after the stream was removed and made anew."""

    number: int
    published_at: float


class NatsSource(Uncopyable):
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
        name: what this relay is called in the server's list of connections; default ``"relay"``.
        ack_wait: seconds of the lease; default 30. A consumer that exists must have at least these.
        max_ack_pending: messages that a consumer that is created hands out unsettled, to all relays together; default
            10,000. Below what a relay has in flight, it slows the relay down.
        create: whether to create what is missing; default True.
        user, password: of an account; default those in `servers`.
        tls: default what the URLs say.

    Raises:
        ConfigurationError: a value out of range, or ``nats-py`` is not installed.
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
        self._servers = NatsServers.of(servers, name, user=user, password=password, tls=tls)
        self._stream = _name("stream", stream)
        self._subject = subject or stream
        check_texts(subject=self._subject)
        self._durable = _name("durable", durable)
        self._dead = _name("dead", dead or f"{stream}-dead")
        self._ack_wait = float(ack_wait)
        self._max_ack_pending = max_ack_pending
        self._create = create
        self._connection: Client | None = None
        self._inbox: Any = None
        # What came and was not fetched; what was fetched and not settled, with the subject that answers to it; and what
        # was settled last.
        self._arrived: dict[_Place, Msg] = {}
        self._held: dict[_Place, str] = {}
        self._settled: dict[_Place, None] = {}
        self._news = asyncio.Event()
        self._trouble: str | None = None
        # How many messages the server still owes us for what it was asked, and when it must have said that there are
        # none. It is asked one thing at a time.
        self._owed = 0
        self._owed_until = 0.0

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``nats://nats:4222/events?durable=relay``.

        Args:
            url: ``nats://`` or, over TLS, ``tls://``; several servers with commas between them; the name of the
                stream. Behind the question mark ``subject``, ``durable``, ``dead``, ``ack_wait`` (seconds) and
                ``create`` (``yes`` or ``no``), as the constructor takes them. User and password stand in the address
                or, better, in the environment: ``RETAILROCKET_RELAY_USER``, ``RETAILROCKET_RELAY_PASSWORD``.
            name: as the constructor takes it.

        Raises:
            ConfigurationError: an address that cannot work; the message does not show it.
        """
        rest, options = split_url(url, "subject", "durable", "dead", "ack_wait", "create")
        parts = urlsplit(rest)
        if parts.query or parts.fragment:
            raise ConfigurationError("the source's address has an option that NATS has not")
        try:
            ack_wait = float(options.get("ack_wait", 30))
            create = {"yes": True, "no": False}[options.get("create", "yes")]
        except (ValueError, KeyError):
            raise ConfigurationError("in the source's address ack_wait must be seconds, and create yes or no") from None
        return cls(
            [f"{parts.scheme}://{server}" for server in parts.netloc.split(",")],
            unquote(parts.path.removeprefix("/")),
            options.get("subject"),
            options.get("durable", "relay"),
            name=name,
            dead=options.get("dead"),
            ack_wait=ack_wait,
            create=create,
            user=os.environ.get("RETAILROCKET_RELAY_USER"),
            password=os.environ.get("RETAILROCKET_RELAY_PASSWORD"),
        )

    def __repr__(self) -> str:
        return f"NatsSource({', '.join(self._servers.urls)}, stream={self._stream!r}, durable={self._durable!r})"

    async def open(self) -> None:
        """Connect, and create the stream, the consumer and the dead letters' stream where they are missing."""
        if self._connection is None or self._connection.is_closed:
            connection = await self._servers.connect(self._disconnected)
            # Before anything that can be cancelled: whatever is connected is closed in the end.
            self._connection, self._inbox = connection, None
        if self._inbox is None:
            connection = cast("Any", self._connected())
            self._inbox = await connection.subscribe(connection.new_inbox(), cb=self._receive)
        # Whoever answered may have been another server, or another consumer.
        self._owed, self._trouble = 0, None
        stream = self._jetstream()
        await self._ensure_streams(stream)
        await self._ensure_consumer(stream)

    async def _ensure_streams(self, stream: Any) -> None:
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
        """Return 1 to `most` messages, oldest first; none after `wait` seconds without any."""
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        # First for as long as it takes, then for as long as they keep coming.
        while len(self._arrived) < most and (self._owed or not self._arrived):
            if not self._owed:
                await self._ask(most, end - clock())
            elif clock() > self._owed_until:
                raise ConnectionError("NATS does not answer what it was asked for messages")
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
        return [self._hand_out(number) for number in sorted(self._arrived)[:most]]

    async def _ask(self, most: int, wait: float) -> None:
        """Ask for `most` messages. What is not there within `wait` seconds the server does not owe us any more."""
        connection = self._connected()
        if self._inbox is None:
            raise ConnectionError("NATS is asked for messages only after `open`")
        # A fetch that only looks is over before the answer comes; the next one finds it.
        wait = max(wait, 0.1)
        self._owed = most
        self._owed_until = asyncio.get_running_loop().time() + wait + ANSWER
        await connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}",
            b'{"batch":%d,"expires":%d}' % (most, wait * 1e9),
            reply=self._inbox.subject,
        )

    def _hand_out(self, place: _Place) -> Message:
        message = self._arrived.pop(place)
        self._held[place] = message.reply
        return Message(
            id=str(place.number),
            body=message.data,
            deliveries=message.metadata.num_delivered,
            published_at=place.published_at,
            handle=place,
        )

    async def _receive(self, message: Msg) -> None:
        """Take what the server sends: a message, or news of what it was asked."""
        status = message.headers.get("Status") if message.headers and not message.data else None
        if status is None:
            self._owed = max(0, self._owed - 1)
            place = _Place(message.metadata.sequence.stream, message.metadata.timestamp.timestamp())
            if place in self._held:
                # Its lease ran out while the connection was down; we are at work on it all the same.
                self._held[place] = message.reply
            elif place in self._settled:
                # A server that was killed forgets the last acknowledgements.
                await self._connected().publish(message.reply, _ACK)
            else:
                self._arrived[place] = message
        else:
            self._owed = 0
            if status not in {_EXPIRED, _ABSENT}:
                self._trouble = f"{status} {(message.headers or {}).get('Description', '')}".strip()
        self._news.set()

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Take messages back for good: the dead are published to their stream first, then all are acknowledged."""
        connection = self._connected()
        dead = [(message, reason) for message, reason in dead if message.handle in self._held]
        await self._bury(dead)
        answers = [(self._held[m.handle], _ACK) for m in done if m.handle in self._held]
        answers += [(self._held[m.handle], _TERM) for m, _ in dead]
        await _confirm(connection, answers)
        for message in [*done, *(message for message, _ in dead)]:
            self._held.pop(message.handle, None)
            self._settled[message.handle] = None
        while len(self._settled) > _REMEMBERED:
            del self._settled[next(iter(self._settled))]

    async def _bury(self, dead: Sequence[tuple[Message, str]]) -> None:
        left, limit = list(dead), self._connected().max_payload - _HEADERS
        while left:
            letters = [self._letter(message, reason, limit) for message, reason in left]
            answers = await publish_all(self._jetstream(), self._dead, letters)
            refused = [pair for pair, answer in zip(left, answers, strict=True) if _is_too_large(answer)]
            smaller = next_limit(limit, max((len(message.body) for message, _ in refused), default=0))
            # The stream may take less than the server does.
            raise_first(answers if smaller is None else [each for each in answers if not _is_too_large(each)])
            for letter, answer in zip(letters, answers, strict=True):
                if getattr(answer, "duplicate", False):
                    await self._keep_again(answer.seq, *letter)
            left, limit = ([], 0) if smaller is None else (refused, smaller)

    async def _keep_again(self, number: int, body: bytes, headers: dict[str, str]) -> None:
        """Publish a dead letter that the server took for a duplicate, unless the first one is still there.

        It may have been removed meanwhile, by a replay or a purge.
        """
        if not await self._is_kept(number, headers[_DEDUPLICATE]):
            rest = {name: value for name, value in headers.items() if name != _DEDUPLICATE}
            raise_first(await publish_all(self._jetstream(), self._dead, [(body, rest)]))

    def _letter_id(self, message: Message) -> str:
        """Return what a dead letter is known by, should it be published twice.

        With the moment of publication, as numbers begin again if a stream is removed and made anew; and with the
        consumer, as several may read one stream.
        """
        moment = round((message.published_at or 0.0) * 1_000_000)
        return f"{self._stream}:{self._durable}:{message.id}:{moment}"

    def _letter(self, message: Message, reason: str, limit: int) -> tuple[bytes, dict[str, str]]:
        """Return a dead letter whose body has `limit` bytes at most, and its headers."""
        headers = {
            _DEDUPLICATE: self._letter_id(message),
            _MESSAGE_ID: message.id,
            _REASON: reason.encode("ascii", "backslashreplace").decode()[:_LONGEST_REASON],
        }
        letter = letter_of(message, limit)
        if letter.size is not None:
            headers |= {_SIZE: f"{letter.size}", _SHA256: letter.sha256}
        return letter.body, headers

    async def _is_kept(self, number: int, letter_id: str) -> bool:
        """Return whether the dead letters' stream has this letter at this place."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            found = await self._jetstream().get_msg(self._dead, seq=number)
        except NotFoundError:
            return False
        headers: dict[str, str] = found.headers or {}
        return headers.get(_DEDUPLICATE) == letter_id

    async def extend(self, messages: Sequence[Message]) -> None:
        """Tell the server that they are being worked on, those included that have arrived and wait to be fetched."""
        replies = [self._held[m.handle] for m in messages if m.handle in self._held]
        replies += [message.reply for message in self._arrived.values()]
        await _tell(self._connected(), [(reply, _PROGRESS) for reply in replies])

    async def release(self, messages: Sequence[Message]) -> None:
        """Let anybody have them, and what has arrived since; nothing more is fetched until the next `open`.

        At once, or when their lease is over: servers of the line 2.9 keep some of them until then.
        """
        connection = self._connected()
        # Or what is given back would come as an answer to what we asked.
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            await asyncio.shield(inbox.unsubscribe())
        held = [message.handle for message in messages if message.handle in self._held]
        replies = [self._held[place] for place in held] + [message.reply for message in self._arrived.values()]
        await _confirm(connection, [(reply, _NAK) for reply in replies])
        self._arrived.clear()
        for place in held:
            self._held.pop(place, None)

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
        return await self._dead_after(0, most)

    async def _dead_after(self, number: int, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters after a number, `most` at most."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        stream = self._jetstream()
        letters: list[DeadLetter] = []
        number += 1
        with suppress(NotFoundError):
            while len(letters) < most:
                found = await stream.get_msg(self._dead, seq=number, subject=self._dead, next=True)
                headers: dict[str, str] = found.headers or {}
                letters.append(
                    DeadLetter(
                        id=str(found.seq),
                        message_id=headers.get(_MESSAGE_ID, ""),
                        body=found.data or b"",
                        reason=headers.get(_REASON, ""),
                        died_at=found.time.timestamp(),
                        size=int(headers[_SIZE]) if _SIZE in headers else None,
                        sha256=headers.get(_SHA256, ""),
                    )
                )
                number = found.seq + 1
        return letters

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again; one that was published and not removed is not published twice.

        Those that were shortened stay.
        """
        count = number = 0
        oldest = True
        while letters := await self._dead_after(number, min(_CHUNK, most - count)):
            number = int(letters[-1].id)
            whole = [letter for letter in letters if may_be_replayed(letter)]
            again = [(letter.body, {_DEDUPLICATE: self._replay_id(letter)}) for letter in whole]
            raise_first(await publish_all(self._jetstream(), self._subject, again))
            oldest = oldest and len(whole) == len(letters)
            await self._remove(whole, oldest=oldest)
            count += len(whole)
        return count

    def _replay_id(self, letter: DeadLetter) -> str:
        """Return what a replayed letter is known by; numbers begin again if the dead letters' stream is made anew."""
        return f"{self._dead}:{letter.id}:{round(letter.died_at * 1_000_000)}"

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters for good; return how many."""
        letters = await self.list_dead(most)
        await self._remove(letters, oldest=True)
        return len(letters)

    async def _remove(self, letters: Sequence[DeadLetter], *, oldest: bool) -> None:
        """Remove dead letters: in one request if they are the `oldest` that there are, or else one by one."""
        stream = self._jetstream()
        if letters and oldest:
            await stream.purge_stream(self._dead, seq=int(letters[-1].id) + 1)
            return
        for letter in letters:
            await stream.delete_msg(self._dead, int(letter.id))

    def _connected(self) -> Client:
        if self._connection is None or not self._connection.is_connected:
            raise ConnectionError(f"not connected to NATS at {', '.join(self._servers.urls)}")
        return self._connection

    def _jetstream(self) -> Any:
        return cast("Any", self._connected()).jetstream(timeout=ANSWER)

    def _disconnected(self) -> None:
        # Whoever reconnects is owed nothing; a fetch that waits asks again.
        self._owed = 0
        self._news.set()


class NatsSubject(Uncopyable):
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
        self._servers = NatsServers.of(servers, "publisher", user=user, password=password, tls=tls)
        check_texts(subject=subject)
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
        stream = cast("Any", self._connection).jetstream(timeout=ANSWER)
        raise_first(await publish_all(stream, self._subject, [(envelope, {}) for envelope in envelopes]))


def _is_too_large(answer: Any) -> bool:
    """Return whether a letter was refused for its size."""
    from nats.errors import MaxPayloadError  # noqa: PLC0415

    return isinstance(answer, MaxPayloadError) or getattr(answer, "err_code", None) == _TOO_LARGE


async def _tell(connection: Client, answers: Iterable[tuple[str, bytes]]) -> None:
    """Answer to messages, and let others run now and then."""
    for count, (reply, verb) in enumerate(answers, start=1):
        await connection.publish(reply, verb)
        if count % 100 == 0:
            await asyncio.sleep(0)


async def _confirm(connection: Client, answers: Sequence[tuple[str, bytes]]) -> None:
    """Answer to messages, and return when the server has taken note of all.

    It takes the answers of one connection in their order, so it is asked to confirm the last one only: one round trip,
    however many there are.
    """
    if answers:
        await _tell(connection, answers[:-1])
        await connection.request(*answers[-1], timeout=ANSWER)


def _name(field: str, value: str) -> str:
    """Check a name of JetStream."""
    if not value or not value.isprintable() or any(letter in " .*>/\\" for letter in value):
        raise ConfigurationError(f"{field} must be a name without spaces or any of . * > / \\, not {value!r}")
    return value
