"""Puts the commands together into one typer application, and runs it."""

from __future__ import annotations

import inspect
import io
import sys
from importlib.metadata import PackageNotFoundError
from typing import Annotated

import retailrocket_async
from retailrocket_async._runtime.extras import needing

with needing("cli"):
    import typer

    from retailrocket_async.cli import _check, _demo, _emulate, _relay, _relay_dead, _send, _spool
    from retailrocket_async.cli._terminal import exiting_on_errors, print_out

app = typer.Typer(
    name="retailrocket-async",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # typer's tracebacks would show the values of local variables, and one of these values is the key.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer passes it by position
    if value:
        try:
            version = retailrocket_async.__version__
        except PackageNotFoundError:
            version = "unknown: a source tree that is not installed"
        print_out(f"retailrocket-async {version}")
        raise typer.Exit


def _prose(text: str | None) -> str:
    """Return `text` with each paragraph on one line; paragraphs that begin with a backspace are not changed."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else part.replace("\n", " ") for part in paragraphs)


_ABOUT = """
Send user-behaviour events to Retail Rocket's tracking API: batched, paced, retried, every outcome known.

The secret key is never an argument, which everyone on the machine could read: it comes from the environment variable
RETAILROCKET_API_KEY or, on a terminal, from a hidden prompt.
"""


@app.callback(help=_prose(_ABOUT), epilog="Try it: retailrocket-async demo")
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Accept the options before the command's name, e.g. ``--version``. The callback of each option does the work."""


for _module, _command in (
    (_demo, _demo.demo),
    (_send, _send.send),
    (_check, _check.check),
    (_emulate, _emulate.emulate),
    (_relay, _relay.relay),
):
    app.command(help=_prose(_command.__doc__), epilog=_prose(_module.EPILOG))(_command)

app.add_typer(_spool.app, name="spool")

_dead = typer.Typer(no_args_is_help=True, help=_prose(_relay_dead.ABOUT), epilog=_prose(_relay_dead.EPILOG))
for _name, _verb in (("list", _relay_dead.list_), ("replay", _relay_dead.replay), ("purge", _relay_dead.purge)):
    _dead.command(_name, help=_prose(_verb.__doc__), epilog=_prose(_relay_dead.EPILOG))(_verb)
app.add_typer(_dead, name="relay-dead")


def run() -> None:
    """Run the command line. Characters that the output's encoding does not contain are printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with exiting_on_errors():
        app(prog_name="retailrocket-async")
