"""``spool``: shows the events and dead letters of a spool, exports, removes and replays them."""

import itertools
import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import attrs
import typer

from retailrocket_async import SpoolError, SqliteSpool
from retailrocket_async.cli._terminal import (
    MISUSED,
    AsJson,
    AsJsonLines,
    fail,
    print_err,
    print_json,
    print_out,
    print_result,
    reporting_errors,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import BinaryIO

    from retailrocket_async import DeadEvent, SpooledEvent

    _Stored = TypeVar("_Stored", SpooledEvent, DeadEvent)

EPILOG = """
A spool is a directory with events that wait for delivery: the path in SqliteSpool(path). You may run these commands
while clients use the spool.

\b
[bold]Examples[/bold]
  retailrocket-async spool stat /var/lib/shop/spool
  retailrocket-async spool dead list /var/lib/shop/spool
  retailrocket-async spool dead replay /var/lib/shop/spool --limit 1000
  retailrocket-async spool export /var/lib/shop/spool --output events.ndjson

[bold]Exit status[/bold]: 0 done, 2 wrong arguments, or the spool cannot be used.
"""

app = typer.Typer(
    no_args_is_help=True, help="Show, export, remove or replay the events of a spool, which SqliteSpool keeps on disk."
)
dead = typer.Typer(no_args_is_help=True, help="Dead letters: events that were refused, or that became too old.")
app.add_typer(dead, name="dead", epilog=EPILOG)

_Spool = Annotated[
    Path, typer.Argument(metavar="DIRECTORY", help="The spool.", exists=True, file_okay=False, show_default=False)
]
_Limit = Annotated[int, typer.Option(min=1, metavar="N", help="The most events to print.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@app.command(epilog=EPILOG)
def stat(spool: _Spool, *, as_json: AsJson = False) -> None:
    """Print how many events wait, since when, and the number of dead letters for each reason."""
    with _reporting_spool_errors():
        found = SqliteSpool(spool).stat()
    if as_json:
        print_json(attrs.asdict(found))
        return
    table(
        f"Spool of {found.partner_id or 'no shop yet'}",
        ("what", "is"),
        (
            ("waiting events", found.events),
            ("bytes in use", found.size),
            ("oldest", "none waits" if found.oldest_at is None else f"{_age(found.oldest_at)} old"),
            ("a process that sends", "running" if found.sending else "none"),
            ("dead letters", sum(found.dead.values())),
            *((f"  {reason}", count) for reason, count in found.dead.items()),
        ),
    )


@app.command("list", epilog=EPILOG)
def list_events(spool: _Spool, *, limit: _Limit = 20, as_json: AsJsonLines = False) -> None:
    """Print the oldest waiting events: number, age and JSON."""
    with _reporting_spool_errors():
        _list(SqliteSpool(spool).events(), lambda event: _age(event.tracked_at), limit, as_json=as_json)


@app.command(epilog=EPILOG)
def purge(
    spool: _Spool,
    *,
    dead_letters: Annotated[
        bool, typer.Option("--dead", help="Remove the dead letters, not the waiting events.")
    ] = False,
    yes: _Yes = False,
) -> None:
    """Remove the waiting events, or the dead letters, for good; events in flight stay."""
    what = "dead letters" if dead_letters else "waiting events"
    if not yes and not typer.confirm(f"Remove all {what} from {spool} for good?", err=True):
        fail("nothing was removed", status=MISUSED)
    with _reporting_spool_errors():
        opened = SqliteSpool(spool)
        print_result(f"removed {opened.purge_dead() if dead_letters else opened.purge():,} {what}")


@app.command(epilog=EPILOG)
def export(
    spool: _Spool,
    *,
    dead_letters: Annotated[bool, typer.Option("--dead", help="Export dead letters, not waiting events.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write; an existing file is not overwritten."),
    ] = None,
) -> None:
    """Write events as JSON lines that `send` accepts, the oldest first; damaged events are skipped.

    The events stay in the spool. If the spool is damaged, first stop all processes that use the spool. Then this
    command writes the events that can still be read.
    """
    if output is None and sys.stdout.isatty():
        fail("events hold personal data and are not printed on a terminal: name a file with --output, or use a pipe")
    with _reporting_spool_errors():
        opened = SqliteSpool(spool)
        if output is None:
            skipped = _write(opened, sys.stdout.buffer, dead_letters=dead_letters)[1]
        else:
            try:
                # Only this user may read the file, because events contain personal data.
                file = os.fdopen(os.open(output, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
            except OSError as error:
                fail(f"cannot write to {output}: {error.strerror}")
            with file:
                count, skipped = _write(opened, file, dead_letters=dead_letters)
            print_err(f"wrote {count:,} events to {output}")
    if skipped:
        print_err(f"skipped {skipped:,} damaged events; events on unreadable pages of the file are not counted")


def _write(spool: SqliteSpool, file: "BinaryIO", *, dead_letters: bool) -> tuple[int, int]:
    """Write events as JSON lines; return the number of written events and the number of damaged, skipped events."""
    count = skipped = 0
    with suppress(BrokenPipeError):
        for envelope in spool.export(dead=dead_letters):
            if envelope is None:
                skipped += 1
            else:
                file.write(envelope + b"\n")
                count += 1
        file.flush()
    return count, skipped


@dead.command("list", epilog=EPILOG)
def list_dead(spool: _Spool, *, limit: _Limit = 20, as_json: AsJsonLines = False) -> None:
    """Print the oldest dead letters: number, age, reason and JSON."""
    with _reporting_spool_errors():
        _list(SqliteSpool(spool).dead(), _cause_of, limit, as_json=as_json)


@dead.command(epilog=EPILOG)
def replay(
    spool: _Spool,
    *,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="The most to replay; default all.")] = None,
) -> None:
    """Move dead letters back to the waiting events, the oldest first; the clients of the spool deliver them."""
    with _reporting_spool_errors():
        print_result(f"{SqliteSpool(spool).replay_dead(limit):,} dead letters wait for delivery again")


@contextmanager
def _reporting_spool_errors() -> "Generator[None]":
    """If the block finds that the spool cannot be used, exit with a sentence that says why."""
    with reporting_errors():
        try:
            yield
        except SpoolError as error:
            fail(str(error))


def _list(events: "Iterable[_Stored]", describe: "Callable[[_Stored], str]", limit: int, *, as_json: bool) -> None:
    """Print the first `limit` events, one line each: JSON, or the event's number, description and envelope."""
    if as_json:
        _print_json(events, limit)
        return
    lines = (f"{event.id}  {describe(event)}  {event.envelope.decode(errors='replace')}" for event in events)
    for number, line in enumerate(lines):
        if number == limit:
            print_err(f"... and more: --limit prints them (it is {limit})")
            return
        if not print_out(line):
            # The program that reads the output, such as `head`, has ended, so stop printing.
            return


def _print_json(events: "Iterable[SpooledEvent | DeadEvent]", limit: int) -> None:
    for event in itertools.islice(events, limit):
        fields = attrs.asdict(event)
        if not print_out(json.dumps(fields | {"envelope": json.loads(event.envelope)}, ensure_ascii=False)):
            return


def _cause_of(letter: "DeadEvent") -> str:
    """Return a text that says when and why an event became a dead letter."""
    return f"{_age(letter.died_at)}  {letter.reason}{' (perhaps recorded)' if letter.maybe_recorded else ''}"


def _age(moment: float) -> str:
    """Return the time since `moment` (seconds since the epoch) in a suitable unit, e.g. ``"1.5 h"``."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
