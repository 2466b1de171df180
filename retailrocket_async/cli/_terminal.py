"""Prints sentences, tables and the progress bar; prints plain text if the output is not a terminal."""

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
"""Exit status if the command ran, but something failed."""

MISUSED = 2
"""Exit status if arguments or configuration are wrong; nothing was sent."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one line of JSON, for scripts.")]
AsJsonLines: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each, for scripts.")]

_REDRAW = 0.05
"""Smallest number of seconds between two redraws of the progress bar."""

_OPTIONS = {
    "allow_insecure_http=True": "--allow-insecure-http",
    "the api_key": "RETAILROCKET_API_KEY",
    "the base_url": "--base-url",
    "base_url": "--base-url",
    "partner_id": "--partner-id",
    "api_key": "RETAILROCKET_API_KEY",
    ": strip() it": "",
}
"""The names of settings in the package's messages, each with the name of the setting on the command line."""


def print_out(text: str) -> bool:
    """Print a line on the standard output, with control characters written as escapes.

    If the output cannot be written, because the program that reads the output has ended or the disk is full, no error
    is raised: the work and the exit status of a command do not depend on the output. No function of this module raises
    such an error.

    Returns:
        Whether the line could be printed.
    """
    return _write(printable(text) + "\n")


def print_err(text: str) -> None:
    """Print a line on the standard error, with control characters written as escapes."""
    _write(printable(text) + "\n", err=True)


def print_result(text: str) -> None:
    """Print a line on the standard output or, if the standard output cannot be written, on the standard error."""
    if not print_out(text):
        print_err(text)


def print_json(data: object) -> None:
    """Print plain values as one line of JSON, for scripts."""
    print_result(json.dumps(data, ensure_ascii=False))


_unwritable: set[TextIO] = set()
"""Outputs to which a write has failed; nothing more is written to these outputs."""


def _write(text: str, *, err: bool = False) -> bool:
    out = cast("TextIO | None", sys.stderr if err else sys.stdout)
    if out is None or out in _unwritable:
        return False
    try:
        typer.echo(text, nl=False, err=err)
    except OSError as error:
        _stop_writing(out, error)
        return False
    return True


def _stop_writing(out: TextIO, error: OSError) -> None:
    """Write nothing more to `out`; report the error, unless the program that reads `out` has ended (as `head` does)."""
    _unwritable.add(out)
    if error.errno != errno.EPIPE and out is not sys.stderr:
        print_err(f"error: the standard output cannot be written: {error.strerror or error}")
    # The interpreter flushes the stream at exit. The flush would fail again, so the stream is redirected to the null
    # device.
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a file
        os.dup2(nowhere.fileno(), out.fileno())


def fail(sentence: str, status: int = MISUSED) -> NoReturn:
    """Print what is wrong as one sentence and exit with `status`."""
    print_err(f"error: {sentence}")
    raise typer.Exit(status)


def fail_to_listen(host: str, port: int, error: OSError, option: str) -> NoReturn:
    """Exit with a sentence which says that the port is not available, and that `option` chooses another port."""
    fail(f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another port with {option}")


@contextmanager
def reporting_errors() -> Generator[None]:
    """Turn any error of the block into one sentence and an exit status: no command prints a traceback."""
    try:
        yield
    except (SystemExit, GeneratorExit, typer.Exit, typer.Abort, click.ClickException):
        # These exceptions already have an exit status, and their sentence was printed.
        raise
    except (ConfigurationError, EventValidationError) as error:
        fail(in_options(str(error)))
    except KeyboardInterrupt:
        print_err("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:  # noqa: BLE001 - a defect, or an error of foreign code, whose text may hold the key
        fail(_described(error), FAILED)


@contextmanager
def exiting_on_errors() -> Generator[None]:
    """Report errors like `reporting_errors`, and exit the process; for code that runs before or after a command."""
    try:
        with reporting_errors():
            yield
    except typer.Exit as left:
        raise SystemExit(left.exit_code) from None


def _described(error: BaseException) -> str:
    """Describe an unexpected error: the type, the operating system's message if there is one, and the line of code."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        name = f"{name}, {error.strerror}"
    elif isinstance(error, (TypeError, AttributeError, NameError, ImportError)):
        # The messages of these errors contain only names from the code. Other messages may contain data or the key.
        name = f"{name}, {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" in {Path(at.filename).name}, line {at.lineno}" for at in frame)
    return f"the command ended with an unexpected error: {name}{place}; please report it"


def printable(text: str) -> str:
    """Return `text` with every character that is not printable written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table on the standard output: the first column left-aligned, the others right-aligned."""
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
        # Rich writes an empty string here, and this write may fail, too.
        _stop_writing(sys.stdout, error)
        return
    # Remove the trailing spaces of each line, which would disturb programs that read the output from a pipe.
    _write("\n".join(line.rstrip() for line in drawn.get().split("\n")))


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def in_options(message: str) -> str:
    """Return a message of the package, with the names of the command's options in place of the names of settings."""
    for keyword, option in _OPTIONS.items():
        message = message.replace(keyword, option)
    return message


class Meter:
    """Draws a progress bar with rate and remaining time on the standard error, if the standard error is a terminal.

    Args:
        what: the words in front of the bar.
        total: the amount of work, in any unit; None if the amount is not known. Then no remaining time is shown.
    """

    def __init__(self, what: str, total: int | None) -> None:
        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            *([TaskProgressColumn(), TimeRemainingColumn(compact=True)] if total is not None else []),
        ]
        # `show` draws the bar. rich's own thread is not used, because the thread would interrupt the event loop's work.
        self._bar = Progress(
            *columns,
            console=console,
            auto_refresh=False,
            # With True, rich would print lines for the standard output on the standard error while the bar is shown.
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._drawn = -math.inf
        self._task = self._bar.add_task(what, total=total, rate="")

    def show(self, done: float, events: int, elapsed: float) -> None:
        """Draw the bar, at most 20 times a second.

        Args:
            done: the amount of work that is done, in the unit of `total`.
            events: the number of events that are done, for the rate.
            elapsed: seconds since the start.
        """
        if not self._bar.disable and elapsed - self._drawn >= _REDRAW:
            self._drawn = elapsed
            rate = f"{events:,} events, {events / max(elapsed, 1e-3):,.0f}/s"
            self._bar.update(self._task, completed=done, rate=rate, refresh=True)

    def print_out(self, text: str) -> bool:
        """Print a line on the standard output (on a terminal: above the bar); return whether the line was printed."""
        out = cast("TextIO | None", sys.stdout)
        if self._bar.disable or out is None or not out.isatty():
            return print_out(text)
        self.print_err(text)
        return True

    def print_err(self, text: str) -> None:
        """Print a line on the standard error, above the bar."""
        if self._bar.disable:
            print_err(text)
        else:
            self._bar.console.print(printable(text), soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
