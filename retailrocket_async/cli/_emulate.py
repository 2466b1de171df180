"""``emulate``: the emulator on a port."""

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from retailrocket_async.cli._credentials import API_KEY, BASE_URL, PARTNER_ID
from retailrocket_async.cli._emulator import needing_emulator
from retailrocket_async.cli._terminal import fail, note, one_sentence, say, tell

if TYPE_CHECKING:
    from retailrocket_async.emulator import RunningEmulator

EPILOG = f"""
The emulator lets in one key and one shop: those of {API_KEY} and {PARTNER_ID}, or development values that
everyone knows. It prints lines to paste into another terminal, and the address of a page that shows in a browser what
arrives and what is refused, and why. The same is at /_control/stats, /_control/events and /_control/refused.

\b
[bold]Examples[/bold]
  retailrocket-async emulate
  retailrocket-async emulate --port 9000 --latency 0.1
  curl http://127.0.0.1:8080/_control/stats

[bold]Exit status[/bold]: 0 stopped by Ctrl-C or SIGTERM, 2 wrong arguments, or the port is taken.
"""


def emulate(  # noqa: PLR0913 - one for each option
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8080,
    limit: Annotated[
        int, typer.Option(min=0, help="Requests admitted in any second, the rest is answered 429; 0 for no limit.")
    ] = 50,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time between recording a request and answering it.")
    ] = 0,
    allow_custom: Annotated[
        bool, typer.Option("--allow-custom", help="Accept events of unknown names too, with any fields.")
    ] = False,
    partner_id: Annotated[
        str,
        typer.Option(
            envvar=PARTNER_ID, metavar="ID", help="The shop that is let in; default dev-partner.", show_default=False
        ),
    ] = "",
) -> None:
    """Run a strict stand-in for the API on this machine, to develop and test against."""
    with one_sentence(), needing_emulator():
        from retailrocket_async.emulator import Settings, serve  # noqa: PLC0415 - an extra

    with one_sentence():
        unset = Settings()
        try:
            settings = Settings(
                api_key=os.environ.get(API_KEY) or unset.api_key,
                partner_id=partner_id or unset.partner_id,
                limit=limit or None,
                latency=latency,
                allow_unknown_events=allow_custom,
            )
        except ValueError as error:
            fail(str(error))
        emulators: list[RunningEmulator] = []

        def ready(emulator: "RunningEmulator") -> None:
            emulators.append(emulator)
            _announce(emulator)

        try:
            asyncio.run(serve(settings, host, port, ready))
        except OSError as error:
            if emulators:  # it listened, so it is something else
                raise
            fail(f"cannot listen on {host}, port {port}: {error.strerror or error}; --port takes another one")
        for emulator in emulators:
            stats = emulator.stats()
            note(f"stopped: {stats['total_events']:,} events in {stats['requests']:,} requests")


def _announce(emulator: "RunningEmulator") -> None:
    settings = emulator.settings
    tell(f"Emulator of the tracking API at {emulator.url}, until Ctrl-C.")
    say(f"Watch it live at {emulator.root}/")
    say("")
    say("Paste into another terminal:")
    say("")
    say(f"export {BASE_URL}={emulator.url}")
    say(f"export {PARTNER_ID}={settings.partner_id}")
    # The development key is known to everyone; one from the environment is shown to no one.
    given = bool(os.environ.get(API_KEY))
    say(f"# {API_KEY}: as it is set here" if given else f"export {API_KEY}={settings.api_key}")
