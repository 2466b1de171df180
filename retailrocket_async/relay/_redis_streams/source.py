"""The source of a relay that reads from Redis Streams.

For each relay, the consumer group in Redis stores the relay's pending entries, i.e. the entries that were handed out to
the relay and not acknowledged. Each pending entry has an idle time. A relay first reads the relay's pending entries,
then pending entries of other relays that have been idle for longer than the lease, then new entries. While a relay
works on an entry, the relay resets the entry's idle time, so that no other relay claims the entry.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Self, cast

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import needing
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._address import Address
from retailrocket_async.relay._redis_streams.entry import message_of
from retailrocket_async.relay._source import Lag

with needing("redis"):
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ResponseError

    from retailrocket_async.relay._redis_streams.dead_letters import CHUNK, RedisDeadLetters, chunks_by_size
    from retailrocket_async.relay._redis_streams.stream import NO_CLUSTER, check_client

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from retailrocket_async.relay._redis_streams.entry import Entry
    from retailrocket_async.relay._source import DeadLetter, Message

# Sets the idle time of entries that this relay still owns. An entry that another relay has claimed is skipped. The
# script checks and claims in one step, because otherwise another relay could claim the entry between check and claim.
_TOUCH = """
local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], '0'}
for i = 4, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], '1', ARGV[2]) == 1 then
    claim[#claim + 1] = ARGV[i]
  end
end
if #claim == 5 then return 0 end
for _, option in ipairs({'IDLE', ARGV[3], 'JUSTID'}) do claim[#claim + 1] = option end
return #redis.call(unpack(claim))
"""

# The ids are passed as one text, separated by spaces. Passing one argument per id would take longer than the rest of
# the command.
_SETTLE = """
local ids = {}
for id in string.gmatch(ARGV[3], '%S+') do ids[#ids + 1] = id end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ids)) end
"""

logger = logging.getLogger("retailrocket_async")


class RedisStreamSource(Uncopyable):
    """Reads messages from a Redis stream through a consumer group. Needs Redis 6.2 or newer.

    An entry contains its message in the field `envelope` or, without this field, in `data`. An entry with neither field
    becomes a dead letter.

    Args:
        redis: a `redis.asyncio.Redis` for one server, or for Sentinel's master, with ``decode_responses=False``;
            `aclose` closes the client. A Redis Cluster is refused.
        stream: the stream's key.
        group: the consumer group. If the group is missing, `open` creates a group that starts at the stream's first
            entry.
        name: the relay's consumer name. Use the same name after a restart: the relay then gets its unsettled entries at
            once. With another name, these entries are handed out only after `lease`. Two relays that run at the same
            time need different names, because otherwise each relay also gets the entries of the other relay.
        dead: the key of the stream of dead letters; default ``"<stream>:dead"``.
        lease: seconds, 0.1 or more, for which an entry must be idle before another relay may claim it; default 60.
        delete_settled: delete entries from the stream when they are acknowledged. Default False: entries stay until the
            stream is trimmed, because other groups may have to read the entries. Use True if the stream has only one
            group.

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(  # noqa: PLR0913 - keywords, most with a default
        self,
        redis: Redis,
        *,
        stream: str,
        group: str,
        name: str,
        dead: str | None = None,
        lease: float = 60.0,
        delete_settled: bool = False,
    ) -> None:
        dead = f"{stream}:dead" if dead is None else dead
        check_texts(spaces=True, stream=stream, group=group, name=name, dead=dead)
        check_client(redis)
        if dead == stream:
            raise ConfigurationError("dead must be another key than stream")
        if type(lease) not in (int, float) or not 0.1 <= lease < math.inf:
            raise ConfigurationError(f"lease must be a number of seconds, 0.1 or more, not {lease!r}")
        if cast("Any", redis).get_encoder().decode_responses:
            raise ConfigurationError("redis must be a client with decode_responses=False: envelopes are bytes")
        self.lease: float | None = float(lease)
        self._idle = round(lease * 1000)
        self._redis = cast("Any", redis)
        # A second client with the same connections. The second client returns answers as the server sends them, because
        # redis-py's conversion of an answer takes longer than reading the answer.
        self._raw = cast("Any", Redis)(connection_pool=redis.connection_pool)
        for command in ("XREADGROUP", "XAUTOCLAIM"):
            self._raw.set_response_callback(command, _unconverted)
        self._stream, self._group, self._name = stream, group, name
        self._delete = delete_settled
        self._touch = self._redis.register_script(_TOUCH)
        self._settle = self._redis.register_script(_SETTLE)
        self._letters = RedisDeadLetters(self._redis, dead, stream=stream, group=group, delete=delete_settled)
        # The ids of entries that were handed out and not settled. When this relay's pending entries are read again,
        # entries with these ids are skipped.
        self._handed_out: set[bytes] = set()
        # The id after which this relay's pending entries are read next; None if all of them were read.
        self._own: bytes | None = b"0-0"
        # The id from which entries of other relays are claimed next, and the time of the next claim on the event loop's
        # clock.
        self._others = b"0-0"
        self._claim_at = -math.inf

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``redis://:secret@redis:6379/0?stream=events&group=relay``.

        Args:
            url: the address, beginning with ``redis://``, ``rediss://`` or ``unix://``. Options after the question
                mark: ``stream`` (required), ``group`` (default ``relay``), ``dead``, ``lease`` (seconds) and
                ``delete_settled`` (``yes`` or ``no``), see the constructor. Other options are passed to redis-py.
            name: see the constructor.

        Raises:
            ConfigurationError: the address is invalid. The error's message does not show the address.
        """
        address = Address.parse(url, "stream", "group", "dead", "lease", "delete_settled")
        options = address.options
        if "stream" not in options:
            raise ConfigurationError("the source's address must name the stream: ...?stream=NAME")
        lease = address.seconds("lease", 60)
        delete = address.flag("delete_settled", default=False)
        try:
            # redis-py must not retry a read. If the answer to the first read is lost, the second read returns other
            # entries, and the relay would not know that the entries of the first read were handed out, too.
            redis: Any = cast("Any", Redis).from_url(
                address.rest, socket_connect_timeout=5, socket_timeout=10, protocol=2, retry=Retry(NoBackoff(), 0)
            )
        except (ValueError, TypeError):
            # `from None` hides the original error: its message may quote the address, which may contain a password.
            raise ConfigurationError("the source's address is not one that redis-py can read") from None
        return cls(
            redis,
            stream=options["stream"],
            group=options.get("group", "relay"),
            name=name,
            dead=options.get("dead"),
            lease=lease,
            delete_settled=delete,
        )

    async def open(self) -> None:
        """Create the group if it is missing. The next fetches return pending entries first.

        Raises:
            ConfigurationError: the stream's key is not a stream, or the server is a node of a cluster.
        """
        await self._refuse_cluster()
        try:
            # A server at its memory limit refuses to create a group even if the group exists, so check first.
            if not await self._has_group():
                await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise ConfigurationError(f"the key {self._stream!r} holds no stream") from None
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._own, self._others, self._claim_at = b"0-0", b"0-0", -math.inf

    async def _refuse_cluster(self) -> None:
        try:
            answer: Any = await self._raw.execute_command("HELLO")
        except ResponseError:
            # The server is a proxy or a service without the command HELLO. Both behave like a single server.
            return
        # The answer is a map or, with the older protocol, a list of names and values in turn.
        about: dict[bytes, Any] = (
            answer if hasattr(answer, "items") else dict(zip(answer[::2], answer[1::2], strict=False))
        )
        if about.get(b"mode") == b"cluster":
            raise ConfigurationError(NO_CLUSTER)

    async def _has_group(self) -> bool:
        try:
            groups = await self._redis.xinfo_groups(self._stream)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise
            # The key does not exist, or this user may not read it.
            return False
        return any(group["name"] == self._group.encode() for group in groups)

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, or an empty list if no message arrives within `wait` seconds.

        The relay's pending entries from before a restart come first, then pending entries of other relays whose leases
        have expired, then new entries.
        """
        most = min(most, CHUNK)
        own, self._own = self._own, b"0-0"
        # If this call fails or is cancelled, an answer with entries may be lost. So `_own` stays at the beginning until
        # the call succeeds, and after a failure the next call reads this relay's pending entries again.
        messages, own = await self._fetch_own(most, own)
        if not messages and asyncio.get_running_loop().time() >= self._claim_at:
            messages = await self._claim(most)
        if not messages:
            until = self._claim_at - asyncio.get_running_loop().time()
            block = round(min(wait, max(until, 0.0)) * 1000)
            messages = await self._messages(await self._read(">", most, *(("BLOCK", block) if block else ())), 1)
        self._own = own
        return messages

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Acknowledge messages. Each message in `dead` is stored as a dead letter and acknowledged in one step."""
        for chunk in _chunks([message.handle for message in done]):
            await self._settle(keys=[self._stream], args=[self._group, int(self._delete), b" ".join(chunk)])
            self._handed_out.difference_update(chunk)
        for some in chunks_by_size(dead):
            await self._letters.keep(some)
            self._handed_out.difference_update(message.handle for message, _ in some)

    async def extend(self, messages: Sequence[Message]) -> None:
        """Reset the idle time of messages; skip messages that another relay has claimed."""
        await self._set_idle(messages, 0)

    async def release(self, messages: Sequence[Message]) -> None:
        """Set the idle time of messages to the lease, so that other relays may claim these messages at once.

        Messages that another relay has already claimed are skipped.
        """
        await self._set_idle(messages, self._idle)
        self._handed_out.difference_update(message.handle for message in messages)

    async def lag(self) -> Lag:
        """Return how many messages of the group are not settled.

        The result's `waiting` is None with Redis 6, or if entries were deleted from the stream.
        """
        for group in await self._redis.xinfo_groups(self._stream):
            if group["name"] == self._group.encode():
                return Lag(waiting=group.get("lag"), pending=group["pending"])
        return Lag()

    async def aclose(self) -> None:
        """Disconnect. If this call is cancelled, the connections are still closed, in the background."""
        await asyncio.shield(self._redis.aclose())

    # --- dead letters ---

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, at most `most`."""
        return await self._letters.oldest(most)

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, then remove them; return the number published.

        Up to 500 letters are published and removed in one transaction. Letters whose bodies were shortened are neither
        published nor removed.
        """
        return await self._letters.replay(most)

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters, at most `most`; return the number removed."""
        return await self._letters.purge(most)

    # --- entries ---

    async def _fetch_own(self, most: int, own: bytes | None) -> tuple[list[Message], bytes | None]:
        """Read this relay's pending entries with ids above `own`; return their messages, and the next value of `own`.

        Entries that this source has already handed out are skipped. The next value of `own` is None if all pending
        entries were read.
        """
        while own is not None:
            entries = await self._read(own, most)
            if not entries:
                return [], None
            own = entries[-1][0]
            messages = await self._messages(entries, 2)
            if messages:
                return messages, own
        return [], None

    async def _claim(self, most: int) -> list[Message]:
        """Claim entries of other relays whose leases have expired, and return them."""
        while True:
            answer = await self._raw.xautoclaim(
                self._stream, self._group, self._name, self._idle, self._others, count=most
            )
            self._others = answer[0]
            messages = await self._messages(answer[1], 2)
            if self._others == b"0-0":
                self._claim_at = asyncio.get_running_loop().time() + self._idle / 2000
                return messages
            if messages:
                return messages

    async def _read(self, after: bytes | str, most: int, *block: object) -> list[Entry]:
        """Return this relay's pending entries with ids above `after`, or new entries if `after` is ``">"``."""
        answer: Any = await self._raw.execute_command(
            "XREADGROUP", "GROUP", self._group, self._name, "COUNT", most, *block, "STREAMS", self._stream, after
        )
        if not answer:
            return []
        # The answer is a list of pairs or, in the protocol RESP3, a map.
        entries: list[Entry] = next(iter(answer.values())) if hasattr(answer, "values") else answer[0][1]
        return entries

    async def _messages(self, entries: Iterable[Entry], deliveries: int) -> list[Message]:
        """Convert entries to messages, and record the messages as handed out.

        Entries that were handed out before are skipped.
        """
        # Redis 6 returns None in place of an entry that was removed.
        new = [entry for entry in entries if entry is not None and entry[0] not in self._handed_out]
        trimmed = [id_ for id_, fields in new if not fields]
        if trimmed:
            text = "%d messages were trimmed from the stream before they were delivered"
            write_log(logger, logging.ERROR, text, len(trimmed))
            await self._redis.xack(self._stream, self._group, *trimmed)
        messages = [message_of(id_, fields, deliveries) for id_, fields in new if fields]
        # The ids are recorded last. If the call is cancelled earlier, the caller does not get the messages, so their
        # ids must not be recorded.
        self._handed_out.update([message.handle for message in messages])
        return messages

    async def _set_idle(self, messages: Sequence[Message], idle: int) -> None:
        for chunk in _chunks([message.handle for message in messages]):
            await self._touch(keys=[self._stream], args=[self._group, self._name, idle, *chunk])


def _unconverted(answer: Any, **_: object) -> Any:  # noqa: ANN401 - any answer of the server
    return answer


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
