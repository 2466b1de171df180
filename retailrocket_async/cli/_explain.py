"""Explains in a sentence why an event was not delivered, and what to correct."""

from __future__ import annotations

from typing import TypeAlias

from retailrocket_async import Abandoned, Dropped, Kept, Rejected
from retailrocket_async.cli._terminal import in_options

Undelivered: TypeAlias = Rejected | Abandoned | Dropped | Kept


def explain(outcome: Undelivered) -> str:  # noqa: PLR0911 - a sentence for each
    """Return why the event of `outcome` was not delivered and what to correct.

    Settings are called by the names of the command's options.
    """
    match outcome:
        case Rejected(status=status, advice=advice):
            return f"{in_options(advice)} (HTTP {status})"
        case Dropped():
            return "never sent: the command ended before its turn came"
        case Abandoned(reason="halted"):
            # `failure` is the kind of failure, a colon, and a sentence that names the setting and the correct value.
            return (outcome.failure or "sending is halted").partition(": ")[2] or "sending is halted"
        case Abandoned(reason="at_most_once"):
            return "perhaps recorded, and never sent twice by this command: find out before you send it again"
        case Abandoned(status=429):
            return "the shop's request limit is used up: lower --rate, or wait for its other processes (HTTP 429)"
        case Abandoned(status=int(status)):
            return f"the API failed: try again later (HTTP {status})"
        case Abandoned(reason="retries_exhausted"):
            return f"no answer: check --base-url and the network ({outcome.failure})"
        case _:
            return "no answer before the command ended"


def is_hopeless(outcome: Undelivered) -> bool:
    """Return whether all requests will fail for the same reason until the configuration or network is corrected."""
    match outcome:
        case Rejected(scope=scope):
            return scope == "access"
        case Abandoned(reason=reason):
            return reason in ("retries_exhausted", "halted")
        case _:
            return False
