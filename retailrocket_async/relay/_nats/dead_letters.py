"""The dead letters of a NATS source, which are stored in a separate stream."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from retailrocket_async.relay._letter import LetterHeaders, may_be_replayed, publish_letters, raise_first
from retailrocket_async.relay._nats.servers import NatsConnection, publish_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async.relay._letter import Attempt
    from retailrocket_async.relay._source import DeadLetter, Message

_CHUNK = 500
"""Largest number of dead letters that `replay` reads, publishes and removes in one step."""

_HEADER_BYTES = 4096
"""Largest size of a dead letter's headers in bytes."""

_LONGEST_REASON = 2000
"""Largest number of characters of a dead letter's reason, counted after the reason's conversion to ASCII."""

_HEADERS = LetterHeaders("Retailrocket-Message-Id", "Retailrocket-Reason", "Retailrocket-Size", "Retailrocket-Sha256")
_DEDUPLICATE = "Nats-Msg-Id"
"""The header with which JetStream recognizes a message that is published twice."""

_TOO_LARGE = 10054
"""JetStream's error code for a message that is larger than its stream allows."""


class NatsDeadLetters:
    """Stores, lists, replays and removes dead letters in a JetStream stream.

    Args:
        connection: the source's connection.
        name: the name of the stream of dead letters, which is also its subject.
        stream: the name of the source's stream.
        subject: the subject to which `replay` publishes dead letters.
        durable: the name of the source's consumer.
    """

    def __init__(self, connection: NatsConnection, name: str, *, stream: str, subject: str, durable: str) -> None:
        self.name = name
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._durable = durable

    async def keep(self, dead: Sequence[tuple[Message, str]]) -> None:
        """Publish messages to the stream of dead letters, each with its reason; shorten bodies that are too large."""
        if not dead:
            return
        limit = self._connection.client.max_payload - _HEADER_BYTES
        for attempt, answer in await publish_letters(dead, limit, self._publish, _is_too_large):
            if getattr(answer, "duplicate", False):
                await self._keep_again(answer, attempt)

    async def _publish(self, attempts: Sequence[Attempt]) -> list[Any]:
        return await publish_all(self._connection.jetstream, self.name, [self._letter(each) for each in attempts])

    def _letter(self, attempt: Attempt) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of the letter to publish."""
        letter, message = attempt.letter, attempt.message
        reason = attempt.reason.encode("ascii", "backslashreplace").decode()[:_LONGEST_REASON]
        headers = _HEADERS.write(letter, message.id, reason)
        return letter.body, {_DEDUPLICATE: self._letter_id(message), **headers}

    def _letter_id(self, message: Message) -> str:
        """Return an id for a message's dead letter; the same message always gets the same id.

        The id contains the message's time of publication, because message numbers start at 1 again if a stream is
        removed and created again. The id contains the consumer's name, because several consumers may read one stream.
        """
        moment = round((message.published_at or 0.0) * 1_000_000)
        return f"{self._stream}:{self._durable}:{message.id}:{moment}"

    async def _keep_again(self, duplicate: Any, attempt: Attempt) -> None:
        """Publish a dead letter that the server refused as a duplicate, if the stream does not contain the letter.

        A replay or a purge may have removed the letter that was published first.
        """
        body, headers = self._letter(attempt)
        letter_id = headers.pop(_DEDUPLICATE)
        if not await self._is_kept(duplicate.seq, letter_id):
            raise_first(await publish_all(self._connection.jetstream, self.name, [(body, headers)]))

    async def _is_kept(self, number: int, letter_id: str) -> bool:
        """Return whether the message with this number in the stream is the letter with this id."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        try:
            found = await self._connection.jetstream.get_msg(self.name, seq=number)
        except NotFoundError:
            return False
        headers: dict[str, str] = found.headers or {}
        return headers.get(_DEDUPLICATE) == letter_id

    async def oldest(self, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters, at most `most`. Sends one request per letter."""
        return await self._after(0, most)

    async def _after(self, number: int, most: int) -> list[DeadLetter]:
        """Return the oldest dead letters whose number in the stream is above `number`, at most `most`."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        stream = self._connection.jetstream
        letters: list[DeadLetter] = []
        number += 1
        with suppress(NotFoundError):
            while len(letters) < most:
                found = await stream.get_msg(self.name, seq=number, subject=self.name, next=True)
                letters.append(
                    _HEADERS.read(
                        found.headers or {},
                        id_=str(found.seq),
                        body=found.data or b"",
                        died_at=found.time.timestamp(),
                    )
                )
                number = found.seq + 1
        return letters

    async def replay(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, then remove them; return the number published.

        If published letters cannot be removed, the next replay does not publish these letters a second time. Letters
        whose bodies were shortened are neither published nor removed.
        """
        count = number = 0
        oldest = True
        while letters := await self._after(number, min(_CHUNK, most - count)):
            number = int(letters[-1].id)
            whole = [letter for letter in letters if may_be_replayed(letter)]
            again = [(letter.body, {_DEDUPLICATE: self._replay_id(letter)}) for letter in whole]
            raise_first(await publish_all(self._connection.jetstream, self._subject, again))
            oldest = oldest and len(whole) == len(letters)
            await self._remove(whole, oldest=oldest)
            count += len(whole)
        return count

    def _replay_id(self, letter: DeadLetter) -> str:
        """Return an id for replaying a letter; the same letter always gets the same id.

        The id contains the letter's time, because letter numbers start at 1 again if the stream of dead letters is
        removed and created again.
        """
        return f"{self.name}:{letter.id}:{round(letter.died_at * 1_000_000)}"

    async def purge(self, most: int) -> int:
        """Remove the oldest dead letters, at most `most`; return the number removed."""
        letters = await self.oldest(most)
        await self._remove(letters, oldest=True)
        return len(letters)

    async def _remove(self, letters: Sequence[DeadLetter], *, oldest: bool) -> None:
        """Remove dead letters: with one request if `oldest` is True, else with one request per letter.

        Args:
            letters: the letters to remove.
            oldest: True if the stream contains no further letter that is older than the last of `letters`.
        """
        stream = self._connection.jetstream
        if letters and oldest:
            await stream.purge_stream(self.name, seq=int(letters[-1].id) + 1)
            return
        for letter in letters:
            await stream.delete_msg(self.name, int(letter.id))


def _is_too_large(answer: object) -> bool:
    """Return whether an answer refuses a letter as too large."""
    from nats.errors import MaxPayloadError  # noqa: PLC0415

    return isinstance(answer, MaxPayloadError) or getattr(answer, "err_code", None) == _TOO_LARGE
