"""``emulate``: serves the emulator on a port until a signal stops the command."""

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from retailrocket_async.cli._credentials import API_KEY, BASE_URL, PARTNER_ID
from retailrocket_async.cli._extras import needing_emulator
from retailrocket_async.cli._terminal import fail, fail_to_listen, print_err, print_out, print_result, reporting_errors

if TYPE_CHECKING:
    from retailrocket_async.emulator import RunningEmulator

EPILOG = f"""
The emulator accepts one key and one shop: those of {API_KEY} and {PARTNER_ID}, or development values that
everyone knows. It prints lines to paste into another terminal, and the address of a page that shows what arrives, what
is refused, and why. The same data is at /_control/stats, /_control/events and /_control/refused.

It also finds two requests with events of one visitor that are under way at once, and timestamps of a visitor that run
backward. The page and /_control/violations list them.

\b
[bold]Examples[/bold]
  retailrocket-async emulate
  retailrocket-async emulate --port 9000 --batch-latency 1.5 --strict-order
  curl http://127.0.0.1:8080/_control/stats

[bold]Exit status[/bold]: 0 stopped by Ctrl-C or SIGTERM, 2 wrong arguments, or the port is taken.
"""


def emulate(  # noqa: PLR0913 - one for each option
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8080,
    limit: Annotated[
        int, typer.Option(min=0, help="Requests accepted in any second; others are answered 429. 0 for no limit.")
    ] = 50,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time between recording a single event and answering it.")
    ] = 0,
    batch_latency: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time between recording a batch and answering it. The real API takes 1.5 s and more.",
        ),
    ] = 0.3,
    strict_order: Annotated[
        bool,
        typer.Option(
            "--strict-order",
            help="Answer 409 to a request that violates the order of a visitor's events; record nothing.",
        ),
    ] = False,
    allow_custom: Annotated[
        bool, typer.Option("--allow-custom", help="Accept events of unknown names too, with any fields.")
    ] = False,
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Accept undocumented fields of documented events too.")
    ] = False,
    partner_id: Annotated[
        str,
        typer.Option(
            envvar=PARTNER_ID, metavar="ID", help="The shop that is accepted; default dev-partner.", show_default=False
        ),
    ] = "",
) -> None:
    """Run a strict stand-in for the API on this machine, to develop and test against."""
    with reporting_errors(), needing_emulator():
        from retailrocket_async.emulator import Settings, serve  # noqa: PLC0415 - an extra

    with reporting_errors():
        unset = Settings()
        try:
            settings = Settings(
                api_key=os.environ.get(API_KEY) or unset.api_key,
                partner_id=partner_id or unset.partner_id,
                limit=limit or None,
                latency=latency,
                batch_latency=batch_latency,
                strict_order=strict_order,
                allow_unknown_events=allow_custom,
                allow_unknown_fields=allow_extra,
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
            if emulators:  # the emulator already listens, so the error has another cause
                raise
            fail_to_listen(host, port, error, "--port")
        for emulator in emulators:
            stats = emulator.stats()
            print_err(f"stopped: {stats['total_events']:,} events in {stats['requests']:,} requests")


def _announce(emulator: "RunningEmulator") -> None:
    settings = emulator.settings
    print_result(f"Emulator of the tracking API at {emulator.url}, until Ctrl-C.")
    print_out(f"Watch it live at {emulator.root}/")
    print_out("")
    print_out("Paste into another terminal:")
    print_out("")
    print_out(f"export {BASE_URL}={emulator.url}")
    print_out(f"export {PARTNER_ID}={settings.partner_id}")
    # A key from the environment is secret, so such a key is not printed; the development key is public.
    given = bool(os.environ.get(API_KEY))
    print_out(f"# {API_KEY}: as it is set here" if given else f"export {API_KEY}={settings.api_key}")
