"""Outcomes as text: the outcome log stores them, and other processes read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Rejected

if TYPE_CHECKING:
    from retailrocket_async._outcome import Outcome

_KINDS: Final = {kind.__name__: kind for kind in (Delivered, Rejected, Abandoned, Dropped)}


def encode_outcome(outcome: Outcome, name: str = "") -> str:
    """Return an outcome as the text that `decode_outcome` reads.

    Args:
        outcome: the outcome of some events.
        name: the name of these events, if they were dropped: those are counted by name.
    """
    return json.dumps([type(outcome).__name__, attrs.asdict(outcome), name])


def decode_outcome(text: str) -> tuple[Outcome, str]:
    """Return the outcome, and the name, that `encode_outcome` was given.

    For a damaged text, or one of a newer version, the outcome is `Abandoned` with the reason ``"untold"``.
    """
    try:
        kind, fields, name = json.loads(text)
        values: dict[str, Any] = fields
        return _KINDS[kind](**values), name
    except (ValueError, TypeError, KeyError):
        return Abandoned(reason="untold", maybe_recorded=True, attempts=0), ""
