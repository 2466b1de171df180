"""What a command did, for who ran it: a table, what went wrong, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async.cli._terminal import FAILED, note, table, tell

if TYPE_CHECKING:
    from retailrocket_async.cli._delivery import Result
    from retailrocket_async.cli._rejects import Rejects
    from retailrocket_async.cli._validation import Validation


def report(result: Result, rejects: Rejects) -> int:
    """Print what became of everything, and return the exit status."""
    stats = result.stats
    rows = [
        ("lines read", result.events + result.bad),
        ("bad lines", result.bad),
        ("events", result.events),
        ("delivered", stats.delivered),
        ("rejected by the API", stats.rejected),
        ("abandoned after retries", stats.abandoned),
        ("dropped, never sent", stats.dropped),
        ("requests", stats.requests),
        ("of them retries", stats.retries),
        ("seconds", f"{result.elapsed:.1f}"),
        ("events per second", round(stats.delivered / max(result.elapsed, 1e-3))),
    ]
    table("", ("", ""), rows)
    for reason, count in result.reasons.most_common():
        note(f"{count:,} events not delivered: {reason}")
    if result.maybe_recorded:
        note(f"{result.maybe_recorded:,} of them may have been recorded all the same: sent again, they may be twice")
    if result.hopeless and result.stopped_at is not None and not stats.delivered:
        # Not a word about the rejects: they are a part of the input, which is to be sent again as a whole.
        note(f"stopped at {result.stopped_at}, since nothing was delivered: mend it and send the same input again")
        return FAILED
    if result.stopped_at is not None:
        note(f"read up to {result.stopped_at}; the rest was not read")
    _report_rejects(rejects, missed=result.events - stats.delivered + result.bad)
    if result.interrupted_by is not None:
        return 128 + result.interrupted_by
    if not result.clean:
        return FAILED
    tell(f"Everything was delivered: {stats.delivered:,} events in {stats.requests:,} requests.")
    return 0


def _report_rejects(rejects: Rejects, *, missed: int) -> None:
    if rejects.failure is not None:
        note(f"{rejects.path} is NOT complete: {rejects.failure}")
    elif rejects.path is None:
        if missed:
            note("--rejects FILE would have kept what was not delivered, to be mended and sent again")
    elif rejects.lines:
        note(f"{rejects.lines:,} lines are in {rejects.path}: once mended, send that file")


def report_validation(checked: Validation, rejects: Rejects) -> int:
    """Print what a dry run found, and return the exit status."""
    note(f"{checked.events:,} events are valid; {checked.bad:,} lines are bad; nothing was sent")
    _report_rejects(rejects, missed=0)
    return FAILED if checked.bad else 0
