"""Writes dead letters: shortens a body that is too large for the broker, and writes reason, size and digest as headers.

A dead letter is a message with a reason, so a dead letter is larger than its message. If the letter would exceed the
broker's limit, the letter contains only the beginning of the message, and the size and a digest of the whole message.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from retailrocket_async.relay._source import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from retailrocket_async.relay._source import Message

_LIMITS = (512 * 1024, 64 * 1024, 1024, 0)
"""Numbers of bytes to which a body is shortened, in this order, until the broker accepts the letter.

A broker that refuses a letter as too large does not say what its limit is.
"""

_SMALL = 1024
"""A body of at most this many bytes is not shortened, because the body is not what makes the letter too large."""


class Letter(NamedTuple):
    """The body of a dead letter, possibly shortened.

    Attributes:
        body: the message's body, or the beginning of the body.
        size: bytes of the whole body if `body` was shortened; else None.
        sha256: digest of the whole body in hexadecimal if `body` was shortened; else ``""``.
    """

    body: bytes
    size: int | None = None
    sha256: str = ""


class LetterHeaders(NamedTuple):
    """The names of a dead letter's headers at one broker.

    Attributes:
        message_id, reason, size, sha256: name of the header that stores the attribute `message_id`, `reason`, `size` or
            `sha256` of a `DeadLetter`.
    """

    message_id: str
    reason: str
    size: str
    sha256: str

    def write(self, letter: Letter | DeadLetter, message_id: str, reason: str) -> dict[str, str]:
        """Return the headers with which a dead letter is stored at the broker."""
        headers = {self.message_id: message_id, self.reason: reason}
        if letter.size is not None:
            headers |= {self.size: f"{letter.size}", self.sha256: letter.sha256}
        return headers

    def read(self, headers: Mapping[str, str], *, id_: str, body: bytes, died_at: float) -> DeadLetter:
        """Return a dead letter with the values that are stored at a broker.

        Args:
            headers: the letter's headers.
            id_: the letter's id at the broker.
            body: the letter's body.
            died_at: when the letter was written, in seconds since the epoch.
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
    """One attempt to publish a message as a dead letter, with at most `limit` bytes of its body."""

    message: Message
    reason: str
    limit: int

    @property
    def letter(self) -> Letter:
        """The dead letter to publish, with a shortened body if the body has more than `limit` bytes."""
        return letter_of(self.message, self.limit)


def letter_of(message: Message, limit: int) -> Letter:
    """Return the dead letter of a message, with at most `limit` bytes of the body; a negative limit means 0."""
    body = message.body
    if len(body) <= limit:
        return Letter(body)
    # Size and digest describe the body of this message, even if the body is the shortened body of an earlier letter.
    return Letter(body[: max(0, limit)], len(body), hashlib.sha256(body).hexdigest())


def may_be_replayed(letter: DeadLetter) -> bool:
    """Return whether a dead letter contains the whole message. A shortened body is not a valid event."""
    return letter.size is None


async def publish_letters(
    dead: Iterable[tuple[Message, str]],
    limit: int,
    publish: Callable[[Sequence[Attempt]], Awaitable[Sequence[object]]],
    is_too_large: Callable[[object], bool],
) -> list[tuple[Attempt, object]]:
    """Publish messages as dead letters; if the broker refuses a letter as too large, publish a shortened letter.

    Args:
        dead: the messages, each with its reason.
        limit: largest number of bytes of a body at the first attempt.
        publish: publishes letters; returns for each letter the broker's answer or the exception.
        is_too_large: returns whether an answer means that the letter was too large.

    Returns:
        For each message the last attempt and the broker's answer.

    Raises:
        Exception: the first failure that has another reason than the letter's size; or the broker refuses a letter as
            too large, and a shorter body would not help.
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
    """Return the number of bytes for the next attempt, or None if a shorter body would not help.

    Args:
        limit: the number of bytes at the last attempt.
        body: bytes of the largest refused body.
    """
    return next((less for less in _LIMITS if less < min(limit, body)), None) if body > _SMALL else None


def raise_first(answers: Iterable[object]) -> None:
    """Raise the first exception among a broker's answers, if there is one."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
