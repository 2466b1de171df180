"""What became of an event, as a sentence that says what to mend."""

from __future__ import annotations

from typing import TypeAlias

from retailrocket_async import Abandoned, Dropped, Kept, Rejected

Undelivered: TypeAlias = Rejected | Abandoned | Dropped | Kept

_REJECTED = {
    400: "the API calls the request malformed and does not say which event is wrong",
    401: "authentication failed: check RETAILROCKET_API_KEY, and that the key belongs to this --partner-id",
    403: "access denied: ask the account manager to open the tracking API for this shop",
    404: "there is no such resource: check --base-url, which ends in /1.0/",
    407: "the proxy on the way asks for credentials: write them into its URL, as http://user:password@host:port",
    413: "the API calls the request too large",
}
_REDIRECTED = "the address redirects, and the key is never sent on: check --base-url"


def explain(outcome: Undelivered) -> str:  # noqa: PLR0911 - a sentence for each
    """Return why `outcome` is no delivery, and what to mend."""
    match outcome:
        case Rejected(status=status):
            other = _REDIRECTED if 300 <= status <= 399 else "the API refused the request"
            return f"{_REJECTED.get(status, other)} (HTTP {status})"
        case Dropped():
            return "never sent: the command ended before its turn came"
        case Abandoned(reason="halted"):
            # The sentence behind the kind names the variable or the proxy, and what to write.
            return (outcome.failure or "sending is halted").partition(": ")[2] or "sending is halted"
        case Abandoned(status=429):
            return "the shop's request limit is used up: lower --rate, or wait for its other processes (HTTP 429)"
        case Abandoned(status=int(status)):
            return f"the API failed: try again later (HTTP {status})"
        case Abandoned(reason="retries_exhausted"):
            return f"no answer: check --base-url and the network ({outcome.failure})"
        case _:
            return "no answer before the command ended"


def is_hopeless(outcome: Undelivered) -> bool:
    """Whether every other request is bound to end like this one until somebody mends something."""
    match outcome:
        case Rejected(status=status):
            return status in (401, 403, 404, 407) or 300 <= status <= 399
        case Abandoned(reason=reason):
            return reason in ("retries_exhausted", "halted")
        case _:
            return False
