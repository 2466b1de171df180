"""How a dead letter is written: with a body that the broker takes, and its facts in headers.

A dead letter is a message with a reason, so it is larger than the message was. If the message was near the broker's
limit, the letter keeps the beginning of it, with the size and a digest of the whole.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from retailrocket_async.relay._source import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from retailrocket_async.relay._source import Message

_LIMITS = (512 * 1024, 64 * 1024, 1024, 0)
"""Bytes of a body that are tried in turn, if a broker refuses a letter as too large and does not name its limit."""

_SMALL = 1024
"""Bytes of a body that is not the reason why a letter is too large."""


class Letter(NamedTuple):
    """The body of a dead letter, possibly shortened.

    Attributes:
        body: the message, or its beginning.
        size: bytes of the whole message; None if `body` is the whole.
        sha256: digest of the whole message in hexadecimal; ``""`` if `body` is the whole.
    """

    body: bytes
    size: int | None = None
    sha256: str = ""


class LetterHeaders(NamedTuple):
    """The names under which a broker's headers hold the facts of a dead letter.

    Attributes:
        message_id, reason, size, sha256: the header of that attribute of `DeadLetter`.
    """

    message_id: str
    reason: str
    size: str
    sha256: str

    def write(self, letter: Letter | DeadLetter, message_id: str, reason: str) -> dict[str, str]:
        """Return the headers of a letter."""
        headers = {self.message_id: message_id, self.reason: reason}
        if letter.size is not None:
            headers |= {self.size: f"{letter.size}", self.sha256: letter.sha256}
        return headers

    def read(self, headers: Mapping[str, str], *, id_: str, body: bytes, died_at: float) -> DeadLetter:
        """Return the dead letter that has these headers.

        Args:
            headers: the headers.
            id_: the letter's id in its store.
            body: its body.
            died_at: when it was written, in seconds since the epoch.
        """
        return DeadLetter(
            id=id_,
            message_id=headers.get(self.message_id, ""),
            body=body,
            reason=headers.get(self.reason, ""),
            died_at=died_at,
            size=int(headers[self.size]) if self.size in headers else None,
            sha256=headers.get(self.sha256, ""),
        )


class Attempt(NamedTuple):
    """A dead message that is published, with at most `limit` bytes of its body."""

    message: Message
    reason: str
    limit: int

    @property
    def letter(self) -> Letter:
        """The letter to publish."""
        return letter_of(self.message, self.limit)


def letter_of(message: Message, limit: int) -> Letter:
    """Return the letter of a message, with at most `limit` bytes of the body; a negative limit counts as 0."""
    body = message.body
    if len(body) <= limit:
        return Letter(body)
    # A message may itself be the beginning of another one, if it was shortened before and published again.
    return Letter(body[: max(0, limit)], len(body), hashlib.sha256(body).hexdigest())


def may_be_replayed(letter: DeadLetter) -> bool:
    """Return whether a dead letter holds the whole message; the beginning of one is no event."""
    return letter.size is None


async def publish_letters(
    dead: Iterable[tuple[Message, str]],
    limit: int,
    publish: Callable[[Sequence[Attempt]], Awaitable[Sequence[object]]],
    is_too_large: Callable[[object], bool],
) -> list[tuple[Attempt, object]]:
    """Publish dead messages, with as much of their bodies as the broker takes; return each with the broker's answer.

    Args:
        dead: the messages, each with its reason.
        limit: bytes of a body to try first.
        publish: publishes letters, and returns the broker's answer or the failure for each.
        is_too_large: whether an answer refuses a letter for its size.

    Raises:
        Exception: the first failure, if it is another one, or if a shorter body would not help.
    """
    kept: list[tuple[Attempt, object]] = []
    left: list[Attempt] = [Attempt(message, reason, limit) for message, reason in dead]
    while left:
        answered: list[tuple[Attempt, object]] = list(zip(left, await publish(left), strict=True))
        refused = [attempt for attempt, answer in answered if is_too_large(answer)]
        smaller = _next_limit(limit, max((len(attempt.message.body) for attempt in refused), default=0))
        taken = [(attempt, answer) for attempt, answer in answered if smaller is None or not is_too_large(answer)]
        raise_first([answer for _, answer in taken])
        kept += taken
        if smaller is None:
            break
        limit = smaller
        left = [Attempt(attempt.message, attempt.reason, smaller) for attempt in refused]
    return kept


def _next_limit(limit: int, body: int) -> int | None:
    """Return how many bytes of a body to try next; None if a shorter body would not help.

    Args:
        limit: bytes tried last.
        body: bytes of the body.
    """
    return next((less for less in _LIMITS if less < min(limit, body)), None) if body > _SMALL else None


def raise_first(answers: Iterable[object]) -> None:
    """Raise the first failure among a broker's answers."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
