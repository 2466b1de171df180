"""The dead letters of a Redis stream: a stream of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from retailrocket_async.relay._letter import LetterHeaders, letter_of, may_be_replayed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from retailrocket_async.relay._source import DeadLetter, Message

CHUNK = 500
"""Entries in one command, which takes a millisecond or two of the server's time."""

_CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of letters in one command, beyond the first letter: the server holds the whole command in memory."""

_ALWAYS_TAKEN = 512 * 1024
"""Bytes of a body that every Redis takes: `proto-max-bulk-len` is at least 1 MiB."""

_HEADERS = LetterHeaders("message_id", "reason", "size", "sha256")

# Redis does not roll a script back: first the letter is added, then the entry is acknowledged. If an entry is not
# pending, this relay or another one has kept it before. If it cannot be acknowledged, the next attempt adds the letter.
_KEEP = """
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


class RedisDeadLetters:
    """Keeps, lists, replays and purges dead letters.

    Args:
        redis: the source's client.
        name: the key of the stream of dead letters.
        stream: the key of the source's stream.
        group: the source's consumer group.
        delete: whether entries are deleted from the source's stream with their acknowledgement.
    """

    def __init__(self, redis: Any, name: str, *, stream: str, group: str, delete: bool) -> None:  # noqa: ANN401 - redis-py
        self._redis = redis
        self._name = name
        self._stream = stream
        self._group = group
        self._delete = delete
        self._keep = redis.register_script(_KEEP)

    async def keep(self, dead: Sequence[tuple[Message, str]]) -> None:
        """Add messages to the dead letters and acknowledge them; they must fit one command, see `chunks_by_size`.

        Bodies are shortened if the server refuses them. One whose `proto-max-bulk-len` was lowered disconnects from a
        client that sends a longer body, and sometimes only the next command fails.
        """
        longest = max(len(message.body) for message, _ in dead)
        limits = [longest, _ALWAYS_TAKEN, _ALWAYS_TAKEN] if longest > _ALWAYS_TAKEN else [longest]
        for attempts_left, limit in zip(reversed(range(len(limits))), limits, strict=True):
            try:
                await self._keep_shortened(dead, limit)
            except (RedisConnectionError, ResponseError) as error:
                refused = isinstance(error, RedisConnectionError) or str(error).startswith("Protocol error")
                if not refused or not attempts_left:
                    raise
            else:
                return

    async def _keep_shortened(self, dead: Sequence[tuple[Message, str]], limit: int) -> None:
        """Add messages to the dead letters and acknowledge them, with at most `limit` bytes of each body."""
        letters: list[Any] = []
        for message, reason in dead:
            letter = letter_of(message, limit)
            size = "" if letter.size is None else letter.size
            letters += [message.handle, letter.body, reason, size, letter.sha256]
        await self._keep(
            keys=[self._stream, self._name],
            args=[self._group, int(self._delete), f"{time.time():.3f}", *letters],
        )

    async def oldest(self, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters, `most` at most."""
        return await self._after("-", most)

    async def _after(self, start: str, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters from an id on, `most` at most."""
        entries: list[tuple[bytes, Mapping[bytes, bytes]]] = []
        if most > 0:
            entries = await self._redis.xrange(self._name, min=start, count=most)
        return [
            _HEADERS.read(
                {
                    name.decode(): value.decode(errors="replace")
                    for name, value in fields.items()
                    if name != b"envelope"
                },
                id_=id_.decode(),
                body=fields.get(b"envelope", b""),
                died_at=float(fields.get(b"died_at", b"0")),
            )
            for id_, fields in entries
        ]

    async def replay(self, most: int) -> int:
        """Publish the oldest dead letters again and remove them, in one step; return how many.

        Those that were shortened stay.
        """
        count, start = 0, "-"
        while letters := await self._after(start, min(CHUNK, most - count)):
            start = f"({letters[-1].id}"
            whole = [letter for letter in letters if may_be_replayed(letter)]
            if whole:
                async with self._redis.pipeline(transaction=True) as pipe:
                    for letter in whole:
                        pipe.xadd(self._stream, {"envelope": letter.body})
                    pipe.xdel(self._name, *(letter.id for letter in whole))
                    await pipe.execute()
                count += len(whole)
        return count

    async def purge(self, most: int) -> int:
        """Remove the oldest dead letters for good; return how many."""
        count = 0
        while letters := await self.oldest(min(CHUNK, most - count)):
            count += await self._redis.xdel(self._name, *(letter.id for letter in letters))
        return count


def chunks_by_size(dead: Sequence[tuple[Message, str]]) -> Iterator[Sequence[tuple[Message, str]]]:
    """Yield dead messages in order, as many together as fit one command."""
    chunk: list[tuple[Message, str]] = []
    size = 0
    for message, reason in dead:
        if chunk and (len(chunk) == CHUNK or size + len(message.body) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((message, reason))
        size += len(message.body)
    if chunk:
        yield chunk
