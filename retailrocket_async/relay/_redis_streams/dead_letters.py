"""The dead letters of a Redis stream, which are stored in a separate stream."""

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
"""Largest number of entries in one command. A command with 500 entries blocks the server for 1 to 2 ms."""

_CHUNK_BYTES = 8 * 1024 * 1024
"""Largest total size in bytes of the bodies in one command. A larger body is sent in a command with no other body.

The size is limited because the server keeps the whole command in memory.
"""

_ALWAYS_TAKEN = 512 * 1024
"""A body of this many bytes is accepted by every Redis, because `proto-max-bulk-len` is at least 1 MiB."""

_HEADERS = LetterHeaders("message_id", "reason", "size", "sha256")

# Redis does not undo the first commands of a script that fails. So the script adds the letter first and acknowledges
# the entry second: the message is not lost if the script fails in between. If an entry is not pending, the script skips
# the entry, because a relay has already stored the letter. If the entry cannot be acknowledged, the script removes the
# letter, and the next attempt adds the letter again.
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
    """Stores, lists, replays and purges dead letters in a Redis stream.

    Args:
        redis: the source's client.
        name: the key of the stream of dead letters.
        stream: the key of the source's stream.
        group: the source's consumer group.
        delete: whether entries are deleted from the source's stream when they are acknowledged.
    """

    def __init__(self, redis: Any, name: str, *, stream: str, group: str, delete: bool) -> None:  # noqa: ANN401 - redis-py
        self._redis = redis
        self._name = name
        self._stream = stream
        self._group = group
        self._delete = delete
        self._keep = redis.register_script(_KEEP)

    async def keep(self, dead: Sequence[tuple[Message, str]]) -> None:
        """Store messages as dead letters and acknowledge them.

        If the server refuses bodies as too large, these bodies are shortened. A server with a low `proto-max-bulk-len`
        disconnects a client that sends a longer body. Sometimes the client notices this only at its next command, so
        the shortened bodies are sent up to two times.

        Args:
            dead: the messages, each with its reason: one of the lists that `chunks_by_size` yields.
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
        """Store messages as dead letters, with at most `limit` bytes of each body, and acknowledge them."""
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
        """Return the oldest dead letters, at most `most`."""
        return await self._after("-", most)

    async def _after(self, start: str, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters whose ids are not below `start`, at most `most`.

        If `start` is ``"-"``, begin with the first letter. If `start` begins with ``"("``, the letter with exactly this
        id is left out.
        """
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
        """Publish the oldest dead letters again, at most `most`, then remove them; return the number published.

        Up to 500 letters are published and removed in one transaction. Letters whose bodies were shortened are neither
        published nor removed.
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
        """Remove the oldest dead letters, at most `most`; return the number removed."""
        count = 0
        while letters := await self.oldest(min(CHUNK, most - count)):
            count += await self._redis.xdel(self._name, *(letter.id for letter in letters))
        return count


def chunks_by_size(dead: Sequence[tuple[Message, str]]) -> Iterator[Sequence[tuple[Message, str]]]:
    """Split messages, without changing their order, into lists that can be stored with one command each."""
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
