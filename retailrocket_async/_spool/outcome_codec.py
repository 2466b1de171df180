"""Converts outcomes to the text that the outcome log of a spool stores, and converts this text back to outcomes."""

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
        name: the name of these events if the outcome is `Dropped`, because dropped events are counted by name; default
            empty.
    """
    return json.dumps([type(outcome).__name__, attrs.asdict(outcome), name])


def decode_outcome(text: str) -> tuple[Outcome, str]:
    """Return the outcome and the name that were passed to `encode_outcome`.

    If the text is damaged, or was written by a newer version of this package, the outcome is `Abandoned` with the
    reason ``"untold"``.
    """
    try:
        kind, fields, name = json.loads(text)
        values: dict[str, Any] = fields
        return _KINDS[kind](**values), name
    except (ValueError, TypeError, KeyError):
        return Abandoned(reason="untold", maybe_recorded=True, attempts=0), ""
