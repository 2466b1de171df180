"""Fetches messages from a pull consumer: requests messages, and receives them on an inbox subject of the source.

A received message is in `Inbox.arrived` until the relay fetches the message, then in `Inbox.held` until the message is
settled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from retailrocket_async.relay._nats.servers import ANSWER, NatsConnection
from retailrocket_async.relay._source import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nats.aio.msg import Msg

_GAP = 0.02
"""Seconds without a new message after which a fetch returns the messages that have arrived.

The server sends the messages of one request in a quick burst, so after a pause no further messages will follow soon.
"""

_SLACK = 0.2
"""Seconds after the end of a request after which the next request is sent, if the server has sent messages but no end.

While a server of version 2.9 hands out many messages whose leases have expired, it does not report that a request ends.
"""

_REMEMBERED = 20_000
"""Number of the last settled messages that are recognized if the server hands them out again."""

ACK = b"+ACK"
_EXPIRED = "408"
_ABSENT = "404"


class Place(NamedTuple):
    """Identifies a message by number and time.

    The number alone is not enough, because numbers start at 1 again if the stream is removed and created again.

    Attributes:
        number: the message's number in its stream.
        published_at: when the message was published, in seconds since the epoch.
    """

    number: int
    published_at: float


class Inbox:
    """Requests messages for one source, and stores the received messages that are not settled.

    Args:
        connection: the source's connection.
        stream: the name of the stream.
        durable: the name of the consumer.

    Attributes:
        arrived: messages that were received and not fetched yet.
        held: messages that were fetched and not settled, each with the subject to which its acknowledgement is sent.
        requested: number of messages that the server may still send for the last request. There is one request at a
            time.
    """

    def __init__(self, connection: NatsConnection, stream: str, durable: str) -> None:
        self.arrived: dict[Place, Msg] = {}
        self.held: dict[Place, str] = {}
        self.requested = 0
        self._connection = connection
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._subscription: Any = None
        self._settled: dict[Place, None] = {}
        self._news = asyncio.Event()
        self._refusal: str | None = None
        # When the last request times out, in seconds on the event loop's clock.
        self._ends_at = 0.0
        # Whether the server has sent a message since the last request.
        self._answered = False

    async def subscribe(self, *, anew: bool) -> None:
        """Subscribe to the inbox subject, unless this connection has subscribed before.

        Args:
            anew: True if the connection is new; an earlier subscription is not valid any more then.
        """
        if anew:
            self._subscription = None
        if self._subscription is None:
            client = cast("Any", self._connection.client)
            self._subscription = await client.subscribe(client.new_inbox(), cb=self._receive)
        # The last request is forgotten, because another server or consumer may have received the request.
        self.requested, self._refusal = 0, None

    async def unsubscribe(self) -> None:
        """Receive no more messages until `subscribe` is called."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await asyncio.shield(subscription.unsubscribe())

    def disconnected(self) -> None:
        """Forget the last request, because the connection is lost. A waiting fetch sends a new request."""
        self.requested = 0
        self._news.set()

    def forget(self) -> None:
        """Forget all messages that are not settled. The server hands out a message again when its lease expires."""
        self.held.clear()
        self.arrived.clear()

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first, or an empty list if no message arrives within `wait` seconds.

        Raises:
            ConnectionError: the server does not answer, or refuses the request.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        # Wait for the first message, then go on waiting while further messages arrive within `_GAP` seconds.
        while len(self.arrived) < most and (self.requested or not self.arrived):
            if self._answered and clock() > self._ends_at + _SLACK:
                self.requested = 0
            if not self.requested:
                await self.request(most, end - clock())
            elif clock() > self._ends_at + ANSWER:
                raise ConnectionError("NATS does not answer a request for messages")
            until = min(end, clock() + _GAP) if self.arrived else end
            self._news.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                break
            if self._refusal is not None:
                refusal, self._refusal = self._refusal, None
                raise ConnectionError(f"NATS hands out nothing: {refusal}")
        return [self._hand_out(place) for place in sorted(self.arrived)[:most]]

    async def request(self, most: int, wait: float) -> None:
        """Request `most` messages. The server sends messages that exist, or are published within `wait` seconds."""
        client = self._connection.client
        if self._subscription is None:
            raise ConnectionError("NATS can be asked for messages only after `open`")
        # A wait of less than 0.1 s could end before the server has answered. If the server answers after the fetch has
        # returned, the next fetch returns the messages.
        wait = max(wait, 0.1)
        self.requested = most
        self._ends_at = asyncio.get_running_loop().time() + wait
        self._answered = False
        body = b'{"batch":%d,"expires":%d}' % (most, wait * 1e9)
        await client.publish(self._next, body, reply=self._subscription.subject)

    def _hand_out(self, place: Place) -> Message:
        message = self.arrived.pop(place)
        self.held[place] = message.reply
        return Message(
            id=str(place.number),
            body=message.data,
            deliveries=message.metadata.num_delivered,
            published_at=place.published_at,
            handle=place,
        )

    async def _receive(self, message: Msg) -> None:
        """Handle an answer of the server. The answer is a message or a status."""
        status = message.headers.get("Status") if message.headers and not message.data else None
        if status is None:
            self.requested = max(0, self.requested - 1)
            self._answered = True
            place = Place(message.metadata.sequence.stream, message.metadata.timestamp.timestamp())
            if place in self.held:
                # The message's lease expired while the connection was down, so the server has sent the message again.
                # The relay still works on the message, so only the subject for the acknowledgement is replaced.
                self.held[place] = message.reply
            elif place in self._settled:
                # The message was settled before, but the server lost the acknowledgement, e.g. because the server was
                # killed.
                await self._connection.client.publish(message.reply, ACK)
            else:
                self.arrived[place] = message
        else:
            self.requested = 0
            if status not in {_EXPIRED, _ABSENT}:
                self._refusal = f"{status} {(message.headers or {}).get('Description', '')}".strip()
        self._news.set()

    def settled(self, messages: Iterable[Message]) -> None:
        """Record that messages are settled, so that the messages are recognized if the server sends them again."""
        for message in messages:
            self.held.pop(message.handle, None)
            self._settled[message.handle] = None
        while len(self._settled) > _REMEMBERED:
            del self._settled[next(iter(self._settled))]
