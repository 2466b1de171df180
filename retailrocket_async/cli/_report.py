"""Prints the result of ``send``: a table, what went wrong, and what the user can do about the problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async.cli._terminal import FAILED, print_err, print_json, print_result, table

if TYPE_CHECKING:
    from retailrocket_async.cli._delivery import Result
    from retailrocket_async.cli._rejects import Rejects
    from retailrocket_async.cli._validation import Validation


def report(result: Result, rejects: Rejects, *, watched: bool = False, as_json: bool = False) -> int:
    """Print the result of sending, and return the exit status.

    Args:
        result: the result.
        rejects: the file of rejects.
        watched: whether the input was followed with ``--watch``, so that an interruption is the normal end.
        as_json: print one line of JSON on the standard output instead of the table. Sentences are still printed on the
            standard error.
    """
    stats = result.stats
    if as_json:
        print_json(_as_dict(result, rejects))
    else:
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
        print_err(f"{count:,} events not delivered: {reason}")
    if result.maybe_recorded:
        print_err(
            f"{result.maybe_recorded:,} of them may have been recorded all the same, and twice if you send them again"
        )
    if result.hopeless and result.stopped_at is not None and not stats.delivered:
        # The file of rejects is not mentioned: it contains only a part of the input, but all of the input must be sent
        # again.
        print_err(
            f"stopped at {result.stopped_at}, since nothing was delivered: correct the cause and send the input again"
        )
        return FAILED
    if result.stopped_at is not None:
        print_err(f"read up to {result.stopped_at}; the rest was not read: --from-line goes on from the next line")
    _report_rejects(rejects, missed=result.events - stats.delivered + result.bad)
    if result.interrupted_by is not None and not watched:
        return 128 + result.interrupted_by
    if not (result.complete if watched else result.clean):
        return FAILED
    if not as_json:
        print_result(f"Everything was delivered: {stats.delivered:,} events in {stats.requests:,} requests.")
    return 0


def _as_dict(result: Result, rejects: Rejects) -> dict[str, object]:
    stats = result.stats
    return {
        "events": result.events,
        "bad_lines": result.bad,
        "unreadable_inputs": result.unreadable,
        "delivered": stats.delivered,
        "rejected": stats.rejected,
        "abandoned": stats.abandoned,
        "dropped": stats.dropped,
        "maybe_recorded": result.maybe_recorded,
        "reasons": dict(result.reasons),
        "requests": stats.requests,
        "retries": stats.retries,
        "seconds": round(result.elapsed, 3),
        "stopped_at": result.stopped_at,
        "interrupted_by": result.interrupted_by,
        "rejects": rejects.lines if rejects.path is not None else None,
    }


def _report_rejects(rejects: Rejects, *, missed: int) -> None:
    if rejects.failure is not None:
        print_err(f"{rejects.path} is NOT complete: {rejects.failure}")
    elif rejects.path is None:
        if missed:
            print_err("with --rejects FILE, what is not delivered is written to a file, to be corrected and sent again")
    elif rejects.lines:
        print_err(f"{rejects.lines:,} lines are in {rejects.path}: correct them and send that file")


def report_validation(checked: Validation, rejects: Rejects, *, as_json: bool = False) -> int:
    """Print the result of a dry run, and return the exit status."""
    if as_json:
        print_json({"events": checked.events, "bad_lines": checked.bad})
    print_err(f"{checked.events:,} events are valid; {checked.bad:,} lines are bad; nothing was sent")
    _report_rejects(rejects, missed=0)
    return FAILED if checked.bad else 0
