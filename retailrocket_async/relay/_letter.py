"""How a dead letter is made to fit a broker's limits: the body is shortened, and the letter says so.

A dead letter is a message with a reason, so it is larger than the message was. Of a message near the broker's limit it
keeps the beginning, the size and a digest of the whole.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async.relay._source import DeadLetter, Message

_LIMITS = (512 * 1024, 64 * 1024, 1024, 0)
"""Bytes of a body that are tried in turn, if a broker refuses a letter as too large and does not say what it takes."""

_SMALL = 1024
"""Bytes of a body that cannot be what a letter is too large for."""


class Letter(NamedTuple):
    """A dead letter as it is written.

    Attributes:
        body: the message, or its beginning.
        size: bytes of the whole message; None if `body` is the whole.
        sha256: digest of the whole message in hexadecimal; ``""`` if `body` is the whole.
    """

    body: bytes
    size: int | None = None
    sha256: str = ""


def letter_of(message: Message, limit: int) -> Letter:
    """Return the letter of a message whose body may have `limit` bytes, 0 or less for none."""
    body = message.body
    if len(body) <= limit:
        return Letter(body)
    # A message that was shortened before, and was published again, is a message of its own.
    return Letter(body[: max(0, limit)], len(body), hashlib.sha256(body).hexdigest())


def may_be_replayed(letter: DeadLetter) -> bool:
    """Return whether a dead letter holds the whole message; a part of one is no event."""
    return letter.size is None


def next_limit(limit: int, body: int) -> int | None:
    """Return how many bytes of a body to try next; None if shortening it more would not help.

    Args:
        limit: what was tried last.
        body: bytes of the body.
    """
    return next((less for less in _LIMITS if less < min(limit, body)), None) if body > _SMALL else None


def raise_first(answers: Sequence[object]) -> None:
    """Raise the first failure among a broker's answers."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
