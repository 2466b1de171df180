"""``spool``: looks into a spool, and tidies it up."""

import itertools
import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from retailrocket_async import SpoolError, SqliteSpool
from retailrocket_async.cli._terminal import (
    MISUSED,
    AsJson,
    AsJsonLines,
    fail,
    note,
    one_sentence,
    say,
    table,
    tell,
    tell_json,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import BinaryIO

    from retailrocket_async import DeadEvent, SpooledEvent

EPILOG = """
A spool is a directory with events that are to be delivered: the path that a client was given as SqliteSpool(path).
All of this may be done while clients use it.

\b
[bold]Examples[/bold]
  retailrocket-async spool stat /var/lib/shop/spool
  retailrocket-async spool dead list /var/lib/shop/spool
  retailrocket-async spool dead replay /var/lib/shop/spool --limit 1000
  retailrocket-async spool export /var/lib/shop/spool --output events.ndjson

[bold]Exit status[/bold]: 0 done, 2 wrong arguments, or the spool cannot be used.
"""

app = typer.Typer(no_args_is_help=True, help="Look into a spool, the events on disk of SqliteSpool, and tidy it up.")
dead = typer.Typer(no_args_is_help=True, help="Dead letters: events that were refused, or that became too old.")
app.add_typer(dead, name="dead", epilog=EPILOG)

_Spool = Annotated[
    Path, typer.Argument(metavar="DIRECTORY", help="The spool.", exists=True, file_okay=False, show_default=False)
]
_Limit = Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether you mean it.")]


@app.command(epilog=EPILOG)
def stat(spool: _Spool, *, as_json: AsJson = False) -> None:
    """Tell how much waits, since when, and how many dead letters there are, by reason."""
    with _understood():
        found = SqliteSpool(spool).stat()
    if as_json:
        tell_json(attrs.asdict(found))
        return
    table(
        f"Spool of {found.partner_id or 'no shop yet'}",
        ("what", "is"),
        (
            ("events that wait", found.events),
            ("bytes in use", found.size),
            ("oldest", "none waits" if found.oldest_at is None else f"{_ago(found.oldest_at)} old"),
            ("a process that sends", "there is one" if found.sending else "none right now"),
            ("dead letters", sum(found.dead.values())),
            *((f"  {reason}", count) for reason, count in found.dead.items()),
        ),
    )


@app.command("list", epilog=EPILOG)
def list_events(spool: _Spool, *, limit: _Limit = 20, as_json: AsJsonLines = False) -> None:
    """Print the oldest events that wait: number, age and JSON."""
    with _understood():
        if as_json:
            _print_json(SqliteSpool(spool).events(), limit)
            return
        _print(
            (
                f"{event.id}  {_ago(event.tracked_at)}  {event.envelope.decode(errors='replace')}"
                for event in SqliteSpool(spool).events()
            ),
            limit,
        )


@app.command(epilog=EPILOG)
def purge(
    spool: _Spool,
    *,
    dead_letters: Annotated[
        bool, typer.Option("--dead", help="Remove the dead letters, not the events that wait.")
    ] = False,
    yes: _Yes = False,
) -> None:
    """Remove the events that wait, or the dead letters, for good; those that are just being sent stay."""
    what = "dead letters" if dead_letters else "events that wait to be delivered"
    if not yes and not typer.confirm(f"Remove all {what} from {spool} for good?", err=True):
        fail("nothing was removed", status=MISUSED)
    with _understood():
        opened = SqliteSpool(spool)
        tell(f"removed {opened.purge_dead() if dead_letters else opened.purge():,} {what}")


@app.command(epilog=EPILOG)
def export(
    spool: _Spool,
    *,
    dead_letters: Annotated[bool, typer.Option("--dead", help="The dead letters, not the events that wait.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; a file that is there already is not touched."),
    ] = None,
) -> None:
    """Write events as JSON lines that `send` takes, oldest first, and skip those that are damaged.

    They stay in the spool. Of a damaged spool it writes what can be read; stop the processes that use it before.
    """
    if output is None and sys.stdout.isatty():
        fail("events are personal data, and are not shown on a terminal: name a file with --output, or use a pipe")
    with _understood():
        opened = SqliteSpool(spool)
        if output is None:
            skipped = _write(opened, sys.stdout.buffer, dead_letters=dead_letters)[1]
        else:
            try:
                # For this user alone: events are personal data.
                file = os.fdopen(os.open(output, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
            except OSError as error:
                fail(f"cannot write to {output}: {error.strerror}")
            with file:
                count, skipped = _write(opened, file, dead_letters=dead_letters)
            note(f"wrote {count:,} events to {output}")
    if skipped:
        note(f"skipped {skipped:,} events that are damaged; events of pages that cannot be read at all are not counted")


def _write(spool: SqliteSpool, file: "BinaryIO", *, dead_letters: bool) -> tuple[int, int]:
    """Write events as lines; return how many were written, and how many were damaged."""
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
    with _understood():
        if as_json:
            _print_json(SqliteSpool(spool).dead(), limit)
            return
        _print(
            (
                f"{event.id}  {_ago(event.died_at)}  {event.reason}"
                f"{' (perhaps recorded)' if event.maybe_recorded else ''}  {event.envelope.decode(errors='replace')}"
                for event in SqliteSpool(spool).dead()
            ),
            limit,
        )


@dead.command(epilog=EPILOG)
def replay(
    spool: _Spool,
    *,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many at most; default all.")] = None,
) -> None:
    """Let dead letters wait again, those that died first; whoever sends from this spool sends them, too."""
    with _understood():
        tell(f"{SqliteSpool(spool).replay_dead(limit):,} dead letters wait to be delivered again")


@contextmanager
def _understood() -> "Generator[None]":
    """Say in one sentence why a spool cannot be used."""
    with one_sentence():
        try:
            yield
        except SpoolError as error:
            fail(str(error))


def _print_json(events: "Iterable[SpooledEvent | DeadEvent]", limit: int) -> None:
    for event in itertools.islice(events, limit):
        fields = attrs.asdict(event)
        if not say(json.dumps(fields | {"envelope": json.loads(event.envelope)}, ensure_ascii=False)):
            return


def _print(lines: "Iterable[str]", limit: int | None) -> None:
    for number, line in enumerate(lines):
        if number == limit:
            note(f"... and more: --limit shows them (it is {limit})")
            return
        if not say(line):
            # Who reads has gone, as head does.
            return


def _ago(moment: float) -> str:
    """Return the age of a moment, in the largest unit that fits."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
