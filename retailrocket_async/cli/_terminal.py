"""What is printed: sentences, tables and the progress bar, plain where no terminal is there to show more."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Self, TextIO, TypeAlias, cast

import click
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from retailrocket_async import ConfigurationError, EventValidationError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import TracebackType

FAILED = 1
"""Exit status: the command ran, and its answer is no."""

MISUSED = 2
"""Exit status: wrong arguments or configuration; nothing was sent."""

INTERRUPTED = 130
"""Exit status: Ctrl-C."""

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one line of JSON, for scripts.")]
AsJsonLines: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each, for scripts.")]

_BLINK = 0.05
"""Seconds between two drawings of the progress bar."""

_OPTIONS = {
    "allow_insecure_http=True": "--allow-insecure-http",
    "the api_key": "RETAILROCKET_API_KEY",
    "the base_url": "--base-url",
    "base_url": "--base-url",
    "partner_id": "--partner-id",
    "api_key": "RETAILROCKET_API_KEY",
    ": strip() it": "",
}


def say(text: str) -> bool:
    """Print a line on the standard output, without the control characters that input may smuggle into it.

    An output that takes nothing (a reader that has gone, a full disk) is no error: what a command has done, and its
    exit status, do not depend on who listens. Everything that prints behaves like that.

    Returns:
        Whether it could be printed.
    """
    return _put(printable(text) + "\n")


def note(text: str) -> None:
    """Print a line on the standard error, likewise."""
    _put(printable(text) + "\n", err=True)


def tell(text: str) -> None:
    """Print a line that must not get lost: on the standard output, else on the standard error."""
    if not say(text):
        note(text)


def tell_json(data: object) -> None:
    """Print plain values as one line of JSON, for scripts."""
    tell(json.dumps(data, ensure_ascii=False))


_lost: set[TextIO] = set()
"""Outputs that took nothing once."""


def _put(text: str, *, err: bool = False) -> bool:
    out = cast("TextIO | None", sys.stderr if err else sys.stdout)
    if out is None or out in _lost:
        return False
    try:
        typer.echo(text, nl=False, err=err)
    except OSError as error:
        _give_up(out, error)
        return False
    return True


def _give_up(out: TextIO, error: OSError) -> None:
    """Print nothing more on `out`; a reader that has gone, as head does, knows that, and else it is told."""
    _lost.add(out)
    if error.errno != errno.EPIPE and out is not sys.stderr:
        note(f"error: the standard output cannot be written: {error.strerror or error}")
    # What is left in the stream would fail once more when the interpreter ends.
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, no file
        os.dup2(nowhere.fileno(), out.fileno())


def fail(sentence: str, status: int = MISUSED) -> NoReturn:
    """Print what is wrong as one sentence and leave with `status`."""
    note(f"error: {sentence}")
    raise typer.Exit(status)


@contextmanager
def one_sentence() -> Generator[None]:
    """Make one sentence and an exit status of whatever is raised: no command shows a traceback."""
    try:
        yield
    except (SystemExit, GeneratorExit, typer.Exit, typer.Abort, click.ClickException):
        # Sentences already, and statuses.
        raise
    except (ConfigurationError, EventValidationError) as error:
        fail(in_options(str(error)))
    except KeyboardInterrupt:
        note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:  # noqa: BLE001 - a defect, or foreign code; its text may hold the key
        fail(_unforeseen(error), FAILED)


@contextmanager
def last_resort() -> Generator[None]:
    """Do the same around all commands, for what is raised before or after them."""
    try:
        with one_sentence():
            yield
    except typer.Exit as left:
        raise SystemExit(left.exit_code) from None


def _unforeseen(error: BaseException) -> str:
    """Return what is to be said of an error that nothing foresaw: its type, the system's words, and its place."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        name = f"{name}, {error.strerror}"
    elif isinstance(error, (TypeError, AttributeError, NameError, ImportError)):
        # Of these the text names code; that of others may hold data, and the key.
        name = f"{name}, {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" in {Path(at.filename).name}, line {at.lineno}" for at in frame)
    return f"the command ended by an error that it does not know: {name}{place}; please report it"


def printable(text: str) -> str:
    """Return `text` with everything that is no visible character written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table on the standard output: words to the left, numbers to the right."""
    first, *others = columns
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(first))
    made.add_column(first)
    for heading in others:
        made.add_column(heading, justify="right")
    for name, *values in rows:
        made.add_row(str(name), *map(_figure, values))
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    try:
        with console.capture() as drawn:
            console.print(made)
    except OSError as error:
        # An output that takes nothing may refuse even the nothing that is written here.
        _give_up(sys.stdout, error)
        return
    # Without the spaces that fill each line to the table's width: they only get in the way of who reads a pipe.
    _put("\n".join(line.rstrip() for line in drawn.get().split("\n")))


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def in_options(message: str) -> str:
    """Return a message of the package with the names of its parameters replaced by those of the options."""
    for keyword, option in _OPTIONS.items():
        message = message.replace(keyword, option)
    return message


class Meter:
    """A progress bar on the standard error with rate and remaining time; nothing at all where that is no terminal.

    Args:
        what: the words in front of the bar.
        total: how much there is to do, in any unit; None where that is not known, which leaves no remaining time.
    """

    def __init__(self, what: str, total: int | None) -> None:
        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            *([TaskProgressColumn(), TimeRemainingColumn(compact=True)] if total is not None else []),
        ]
        # Drawn by who moves it, not by a thread: a bar in the middle of an event loop's work would be a surprise.
        self._bar = Progress(
            *columns,
            console=console,
            auto_refresh=False,
            # Else the standard output would go to the standard error while the bar is there.
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._drawn = -math.inf
        self._task = self._bar.add_task(what, total=total, told="")

    def show(self, done: float, events: int, elapsed: float) -> None:
        """Draw the bar at `done` of the total, after so many events and seconds; a few times a second at most."""
        if not self._bar.disable and elapsed - self._drawn >= _BLINK:
            self._drawn = elapsed
            told = f"{events:,} events, {events / max(elapsed, 1e-3):,.0f}/s"
            self._bar.update(self._task, completed=done, told=told, refresh=True)

    def say(self, text: str) -> bool:
        """Print a line on the standard output; where that is the terminal, above the bar. Returns as `say`."""
        out = cast("TextIO | None", sys.stdout)
        if self._bar.disable or out is None or not out.isatty():
            return say(text)
        self.note(text)
        return True

    def note(self, text: str) -> None:
        """Print a line on the standard error, above the bar."""
        if self._bar.disable:
            note(text)
        else:
            self._bar.console.print(printable(text), soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
