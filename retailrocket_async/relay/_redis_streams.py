"""Redis Streams: a relay's source, and where a producer publishes.

A consumer group remembers what each relay was handed and has not acknowledged (its pending entries), and how long ago.
So a relay reads, in this order: its own pending entries, those of others that have been idle for longer than the lease,
and what is new. While a relay works on something it resets its idle time; nobody else claims it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import needing
from retailrocket_async._runtime.foreign_code import write_log
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._address import split_url
from retailrocket_async.relay._letter import letter_of, may_be_replayed
from retailrocket_async.relay._source import DeadLetter, Lag, Message

with needing("redis"):
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_Entry: TypeAlias = "Sequence[Any]"
"""An entry as the server sends it: its id, and its fields, each followed by its value; None for one without."""

_CHUNK = 500
"""Entries in one command, which holds up the server for a millisecond or two."""

_CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of dead letters in one command, beyond the first letter: the server holds a command in memory as a whole."""

_SURE = 512 * 1024
"""Bytes of a body that every Redis takes: `proto-max-bulk-len` is 1 MiB at least."""

_FIRST_MOMENT = 10**12
"""Milliseconds since the epoch; an id below that was not made by the server's clock."""

# Whoever has taken an entry over meanwhile keeps it: what is not ours any more is left alone. Both in one step, or it
# could change hands in between.
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

# The ids come as one text: to write each as an argument of its own costs more than all else in a settling.
_SETTLE = """
local ids = {}
for id in string.gmatch(ARGV[3], '%S+') do ids[#ids + 1] = id end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ids)) end
"""

# Redis does not roll a script back: first the letter is added, then the entry is acknowledged. An entry that is pending
# no more was kept before, by this relay or by another. If it cannot be acknowledged, the next attempt adds the letter.
_BURY = """
local pending = {}
for i = 4, #ARGV, 5 do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], '1') == 1 then
    local letter = {'XADD', KEYS[2], '*', 'envelope', ARGV[i + 1], 'reason', ARGV[i + 2],
      'message_id', ARGV[i], 'died_at', ARGV[3]}
    if ARGV[i + 3] ~= '' then
      for _, part in ipairs({'size', ARGV[i + 3], 'sha256', ARGV[i + 4]}) do letter[#letter + 1] = part end
    end
    local id = redis.call(unpack(letter))
    local acknowledged = redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[i])
    if type(acknowledged) == 'table' and acknowledged.err then
      redis.pcall('XDEL', KEYS[2], id)
      return acknowledged
    end
  end
  if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], ARGV[i]) end
end
"""

_NO_CLUSTER = (
    "a relay does not read from a Redis Cluster, nor from one of its nodes: keep the stream on a Redis of its own, "
    "with Sentinel if it has to survive its host"
)

logger = logging.getLogger("retailrocket_async")


class RedisStream(Uncopyable):
    """A stream that events are published to; a `Publisher`.

    Args:
        redis: a client of redis-py's asyncio side; shared, never closed here.
        stream: the stream's key.
        max_len: entries after which the oldest are trimmed, about, 1 or more; default None: none are. Redis trims
            whatever is oldest, delivered or not, and tells nobody: a relay that is behind loses events. Use it only
            as the last defence of the server's memory, far above what an outage can pile up; `delete_settled` of
            `RedisStreamSource` removes what was delivered, and nothing else.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(self, redis: Redis, stream: str, *, max_len: int | None = None) -> None:
        _check_names(stream=stream)
        _check_client(redis)
        if max_len is not None and (type(max_len) is not int or max_len < 1):
            raise ConfigurationError(f"max_len must be None or an int of 1 or more, not {max_len!r}")
        self._redis = cast("Any", redis)
        self._head = ("XADD", stream, *(("MAXLEN", "~", max_len) if max_len is not None else ()), "*", "envelope")

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order, one entry each, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for envelope in envelopes:
                pipe.execute_command(*self._head, envelope)
            await pipe.execute()


class RedisStreamSource(Uncopyable):
    """A relay's source on a Redis stream and one of its consumer groups. Needs Redis 6.2 or newer.

    An entry's field `envelope` is its message, or else its field `data`; an entry with neither becomes a dead letter.

    Args:
        redis: a client of redis-py's asyncio side for one server, or for Sentinel's master, with
            ``decode_responses=False``; closed by `aclose`. A Redis Cluster is refused.
        stream: the stream's key.
        group: the consumer group; created where it is missing, at the stream's beginning.
        name: the relay's consumer name. What it had in its hands when it ended it finds again under the same name, at
            once; another relay, or a new name, has to wait for `lease`. So the name must outlive the process; and two
            relays that run at once must have different names, or each takes the other's entries for its own.
        dead: the key of the stream of dead letters; default the stream's with ``:dead`` behind it.
        lease: seconds, 0.1 or more, that an entry may be idle before another relay may claim it; default 60.
        delete_settled: delete entries from the stream with their acknowledgement; default False: they stay until
            somebody trims the stream, as other groups may have to read them. With one group alone say True.

    Raises:
        ConfigurationError: a value out of range.
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
        _check_names(stream=stream, group=group, name=name, dead=dead)
        _check_client(redis)
        if dead == stream:
            raise ConfigurationError("dead must be another key than stream")
        if type(lease) not in (int, float) or not 0.1 <= lease < math.inf:
            raise ConfigurationError(f"lease must be a number of seconds, 0.1 or more, not {lease!r}")
        if cast("Any", redis).get_encoder().decode_responses:
            raise ConfigurationError("redis must be a client with decode_responses=False: envelopes are bytes")
        self.lease: float | None = float(lease)
        self._idle = round(lease * 1000)
        self._redis = cast("Any", redis)
        # The same connections, but answers as they come: to make dicts of them takes longer than to read them.
        self._raw = cast("Any", Redis)(connection_pool=redis.connection_pool)
        for command in ("XREADGROUP", "XAUTOCLAIM"):
            self._raw.set_response_callback(command, _as_it_comes)
        self._stream, self._group, self._name, self._dead_stream = stream, group, name, dead
        self._delete = delete_settled
        self._touch = self._redis.register_script(_TOUCH)
        self._settle = self._redis.register_script(_SETTLE)
        self._bury = self._redis.register_script(_BURY)
        # What the relay has, so that it is not handed out again when the own entries are read again.
        self._out: set[bytes] = set()
        self._own: bytes | None = b"0-0"
        self._others = b"0-0"
        self._claim_at = -math.inf

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``redis://:secret@redis:6379/0?stream=events&group=relay``.

        Args:
            url: of the schemes that redis-py knows, ``redis``, ``rediss`` and ``unix``. Behind the question mark
                ``stream`` (required), ``group`` (default ``relay``), ``dead``, ``lease`` (seconds) and
                ``delete_settled`` (``yes`` or ``no``), as the constructor takes them; anything else goes to redis-py.
            name: as the constructor takes it.

        Raises:
            ConfigurationError: an address that cannot work; the message does not show it.
        """
        rest, options = split_url(url, "stream", "group", "dead", "lease", "delete_settled")
        if "stream" not in options:
            raise ConfigurationError("the source's address must name the stream: ...?stream=NAME")
        try:
            lease = float(options.get("lease", 60))
            delete = {"yes": True, "no": False}[options.get("delete_settled", "no")]
        except (ValueError, KeyError):
            raise ConfigurationError(
                "in the source's address lease must be seconds, and delete_settled yes or no"
            ) from None
        try:
            # No retries of its own: one whose first answer was lost would leave entries behind that nobody knows of.
            redis: Any = cast("Any", Redis).from_url(
                rest, socket_connect_timeout=5, socket_timeout=10, protocol=2, retry=Retry(NoBackoff(), 0)
            )
        except (ValueError, TypeError):
            # Without its cause, which may quote the address.
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
        """Create the group if it is missing; from then on read what is pending first.

        Raises:
            ConfigurationError: the stream's key holds something else, or the server is a node of a cluster.
        """
        await self._refuse_cluster()
        try:
            # A server at its memory limit refuses to create a group, also one that is there.
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
            # A proxy, or a service that knows no HELLO: it looks like one server.
            return
        # A map, or with the older protocol names and values in turn.
        about: dict[bytes, Any] = (
            answer if hasattr(answer, "items") else dict(zip(answer[::2], answer[1::2], strict=False))
        )
        if about.get(b"mode") == b"cluster":
            raise ConfigurationError(_NO_CLUSTER)

    async def _has_group(self) -> bool:
        try:
            groups = await self._redis.xinfo_groups(self._stream)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise
            # There is no such key; or this user may not ask.
            return False
        return any(group["name"] == self._group.encode() for group in groups)

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages: own ones of an earlier life, others' whose lease is over, new ones."""
        most = min(most, _CHUNK)
        own, self._own = self._own, b"0-0"
        # Should this be cancelled, or fail, entries may have been handed out in an answer that nobody got: then the own
        # ones are read again.
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
        """Acknowledge the done; keep the dead in their stream and acknowledge them, in one step."""
        delete = int(self._delete)
        for chunk in _chunks([message.handle for message in done]):
            await self._settle(keys=[self._stream], args=[self._group, delete, b" ".join(chunk)])
            self._out.difference_update(chunk)
        for some in _by_size(dead):
            await self._keep(some)
            self._out.difference_update(message.handle for message, _ in some)

    async def _keep(self, dead: Sequence[tuple[Message, str]]) -> None:
        """Keep the dead in their stream and acknowledge them, with bodies as long as the server takes."""
        longest = max(len(message.body) for message, _ in dead)
        # A server whose `proto-max-bulk-len` was lowered refuses a body that it once took, and disconnects; which the
        # next command may be the first to see.
        tries = [longest, _SURE, _SURE] if longest > _SURE else [longest]
        for left, limit in zip(reversed(range(len(tries))), tries, strict=True):
            try:
                await self._keep_at_most(dead, limit)
            except (RedisConnectionError, ResponseError) as error:
                refused = isinstance(error, RedisConnectionError) or str(error).startswith("Protocol error")
                if not refused or not left:
                    raise
            else:
                return

    async def _keep_at_most(self, dead: Sequence[tuple[Message, str]], limit: int) -> None:
        """Keep the dead and acknowledge them; of each body `limit` bytes at most."""
        letters: list[Any] = []
        for message, reason in dead:
            letter = letter_of(message, limit)
            size = "" if letter.size is None else letter.size
            letters += [message.handle, letter.body, reason, size, letter.sha256]
        await self._bury(
            keys=[self._stream, self._dead_stream],
            args=[self._group, int(self._delete), f"{time.time():.3f}", *letters],
        )

    async def extend(self, messages: Sequence[Message]) -> None:
        """Reset the idle time of what is still this relay's."""
        await self._set_idle(messages, 0)

    async def release(self, messages: Sequence[Message]) -> None:
        """Make what is still this relay's idle for so long that any other may claim it."""
        await self._set_idle(messages, self._idle)
        self._out.difference_update(message.handle for message in messages)

    async def lag(self) -> Lag:
        """Return how far the group is behind; what waits is not told by Redis 6, nor where entries were deleted."""
        for group in await self._redis.xinfo_groups(self._stream):
            if group["name"] == self._group.encode():
                return Lag(waiting=group.get("lag"), pending=group["pending"])
        return Lag()

    async def aclose(self) -> None:
        """Disconnect."""
        await self._redis.aclose()

    # --- dead letters ---

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, `most` at most."""
        return await self._dead_after("-", most)

    async def _dead_after(self, start: str, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters from an id on, `most` at most."""
        entries: list[tuple[bytes, Mapping[bytes, bytes]]] = []
        if most > 0:
            entries = await self._redis.xrange(self._dead_stream, min=start, count=most)
        return [
            DeadLetter(
                id=id_.decode(),
                message_id=fields.get(b"message_id", b"").decode(errors="replace"),
                body=fields.get(b"envelope", b""),
                reason=fields.get(b"reason", b"").decode(errors="replace"),
                died_at=float(fields.get(b"died_at", b"0")),
                size=int(fields[b"size"]) if b"size" in fields else None,
                sha256=fields.get(b"sha256", b"").decode(errors="replace"),
            )
            for id_, fields in entries
        ]

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again and remove them, in one step; return how many.

        Those that were shortened stay.
        """
        count, start = 0, "-"
        while letters := await self._dead_after(start, min(_CHUNK, most - count)):
            start = f"({letters[-1].id}"
            whole = [letter for letter in letters if may_be_replayed(letter)]
            if whole:
                async with self._redis.pipeline(transaction=True) as pipe:
                    for letter in whole:
                        pipe.xadd(self._stream, {"envelope": letter.body})
                    pipe.xdel(self._dead_stream, *(letter.id for letter in whole))
                    await pipe.execute()
                count += len(whole)
        return count

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters for good; return how many."""
        count = 0
        while letters := await self.list_dead(min(_CHUNK, most - count)):
            count += await self._redis.xdel(self._dead_stream, *(letter.id for letter in letters))
        return count

    # --- entries ---

    async def _fetch_own(self, most: int, own: bytes | None) -> tuple[list[Message], bytes | None]:
        """Return own pending entries beyond the id `own` that the relay does not have, and the id to go on from."""
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
        """Return entries whose lease is over."""
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

    async def _read(self, after: bytes | str, most: int, *block: object) -> list[_Entry]:
        """Return own entries after an id, or new ones after ``>``."""
        answer: Any = await self._raw.execute_command(
            "XREADGROUP", "GROUP", self._group, self._name, "COUNT", most, *block, "STREAMS", self._stream, after
        )
        if not answer:
            return []
        # A list of pairs, or in RESP3 a map.
        entries: list[_Entry] = next(iter(answer.values())) if hasattr(answer, "values") else answer[0][1]
        return entries

    async def _messages(self, entries: Iterable[_Entry], deliveries: int) -> list[Message]:
        """Return those of the entries that the relay does not have, and note that it has them."""
        # Redis 6 has None in the place of an entry that is gone.
        new = [entry for entry in entries if entry is not None and entry[0] not in self._out]
        trimmed = [id_ for id_, fields in new if not fields]
        if trimmed:
            write_log(
                logger,
                logging.ERROR,
                "%d messages were trimmed from the stream before they were delivered",
                len(trimmed),
            )
            await self._redis.xack(self._stream, self._group, *trimmed)
        messages = [_message(id_, fields, deliveries) for id_, fields in new if fields]
        # Last, as whoever is cancelled before has not got them.
        self._out.update([message.handle for message in messages])
        return messages

    async def _set_idle(self, messages: Sequence[Message], idle: int) -> None:
        for chunk in _chunks([message.handle for message in messages]):
            await self._touch(keys=[self._stream], args=[self._group, self._name, idle, *chunk])


def _as_it_comes(answer: Any, **_: object) -> Any:  # noqa: ANN401 - whatever the server sends
    return answer


def _message(id_: bytes, fields: Sequence[bytes], deliveries: int) -> Message:
    body = fields[1] if fields[0] == b"envelope" else _body_of(fields)
    milliseconds = int(id_.partition(b"-")[0])
    published_at = milliseconds / 1000 if milliseconds >= _FIRST_MOMENT else None
    return Message(id=id_.decode(), body=body, deliveries=deliveries, published_at=published_at, handle=id_)


def _body_of(fields: Sequence[bytes]) -> bytes:
    """Return the message of an entry that may have more fields than the one, or others."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    for name in (b"envelope", b"data"):
        if name in named:
            return named[name]
    # No envelope, whatever it is, and nothing of it is lost.
    shown = {_shown(name): _shown(value) for name, value in named.items()}
    return json.dumps({"neither envelope nor data": shown}).encode()


def _shown(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _by_size(dead: Sequence[tuple[Message, str]]) -> Iterator[Sequence[tuple[Message, str]]]:
    """Yield dead messages in order, as many at once as fit one command."""
    some: list[tuple[Message, str]] = []
    size = 0
    for message, reason in dead:
        if some and (len(some) == _CHUNK or size + len(message.body) > _CHUNK_BYTES):
            yield some
            some, size = [], 0
        some.append((message, reason))
        size += len(message.body)
    if some:
        yield some


def _check_client(redis: object) -> None:
    if isinstance(redis, RedisCluster):
        raise ConfigurationError(_NO_CLUSTER)
    if not isinstance(redis, Redis):
        raise ConfigurationError(f"redis must be a redis.asyncio.Redis, not {type(redis).__name__}")


def _check_names(**names: object) -> None:
    check_texts(spaces=True, **names)
