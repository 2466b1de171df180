"""``send``: sends files of events to the API, or only checks them."""

import asyncio
import logging
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from retailrocket_async import AsyncTrackingClient, Buffer, RateLimit, RetryPolicy
from retailrocket_async.cli._clickstream import Clickstream
from retailrocket_async.cli._credentials import (
    DEFAULT_BASE_URL,
    AllowInsecureHttp,
    BaseUrl,
    PartnerId,
    credentials,
)
from retailrocket_async.cli._delivery import Delivery
from retailrocket_async.cli._lines import Lines
from retailrocket_async.cli._reading import STDIN, Source, total_size
from retailrocket_async.cli._rejects import Rejects
from retailrocket_async.cli._report import report, report_validation
from retailrocket_async.cli._terminal import AsJson, Meter, fail, reporting_errors
from retailrocket_async.cli._validation import validate

_BUFFER = Buffer(max_events=25_000)
"""The client's buffer: as many events as the default request limit allows in a second.

The buffer is large enough to fill every batch, and small enough that at the end only few events are left to send.
"""

EPILOG = """
\b
[bold]Input[/bold], plain or gzipped, any mixture of files:
  JSON Lines of envelopes, as the API's batches hold them:
    {"view": {"sessionExternalId": "a1b2c3", "productId": 42}}
  the CSV of Retail Rocket's public clickstream, known by its header:
    timestamp,visitorid,event,itemid,transactionid
    1430622120563,683727,view,422926,

An envelope without a timestamp gets the current time. In the clickstream, view, addtocart and transaction become view,
addToBasket and order, the visitor's id becomes the session, and the timestamp is in milliseconds UTC. Each visitor's
events are recorded in the order of the input.

\b
[bold]Examples[/bold]
  retailrocket-async send --dry-run events.jsonl
  retailrocket-async send events.jsonl.gz --rejects rejects.jsonl
  retailrocket-async send rejects.jsonl
  retailrocket-async send events.csv --price 9.90
  zcat events-*.gz | retailrocket-async send -
  retailrocket-async send --watch /var/log/shop/events.jsonl --from-line 120001

With --watch the file is sent from its beginning, or from --from-line, and then followed, also when it is rotated.
Ctrl-C and SIGTERM end the command; it prints the last line that was read. To send new lines only, use the output
of tail -n 0 -F as the input.

[bold]Exit status[/bold]: 0 everything was delivered (or is valid, with --dry-run), 1 something was not, 2 wrong
arguments or configuration and nothing was sent, 130 interrupted by Ctrl-C, 143 interrupted by SIGTERM. With --watch a
signal is the regular end, and the status is 0 or 1.
"""


def send(  # noqa: PLR0913 - one for each option
    *,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="The files to send; - for the standard input.",
            show_default=False,
        ),
    ],
    base_url: BaseUrl = DEFAULT_BASE_URL,
    partner_id: PartnerId = "",
    rate: Annotated[int, typer.Option(min=1, help="Requests per second of all programs of this shop together.")] = 50,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Follow one file as it grows, and the file that replaces it, until Ctrl-C."),
    ] = False,
    from_line: Annotated[
        int,
        typer.Option(min=1, metavar="LINE", help="Begin with this line of the file; for continuing an earlier run."),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the lines and list every bad one; needs no credentials.")
    ] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Write bad lines as they are, and undelivered events as envelopes, to a new file. Correct it, and "
            "send it like any other file.",
        ),
    ] = None,
    allow_custom: Annotated[
        bool, typer.Option("--allow-custom", help="Also send events of unknown names, as they are.")
    ] = False,
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Also send fields that the API does not document, as they are.")
    ] = False,
    price: Annotated[float, typer.Option(help="Price of one unit in every order of a clickstream.")] = 1,
    quantity: Annotated[float, typer.Option(help="Quantity of every order of a clickstream.")] = 1,
    give_up_after: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a failed request is retried.")
    ] = 300,
    drain: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long Ctrl-C waits for events already read.")
    ] = 15,
    as_json: AsJson = False,
    allow_insecure_http: AllowInsecureHttp = False,
) -> None:
    """Send events from files, or from the standard input, and report how many were delivered.

    The size of the input does not change how much memory the command needs. After Ctrl-C the command delivers the
    events already read, and reports; a second Ctrl-C stops the command immediately. If the API refuses the first events
    for a lasting reason, such as a wrong key, the command stops by itself.
    """
    with reporting_errors():
        if files.count(Path(STDIN)) > 1:
            fail("the standard input can be read only once: give - once")
        if not drain < math.inf:
            fail("--drain must be a number of seconds")
        if (watch or from_line > 1) and (len(files) > 1 or files[0] == Path(STDIN)):
            fail(f"{'--watch' if watch else '--from-line'} takes one file, which is not the standard input")
        if watch and dry_run:
            fail("--dry-run and --watch exclude each other: choose one")
        clickstream = Clickstream(price, quantity)
        sources = [Source(path, follow=watch) for path in files]

        def lines_of(source: Source) -> Lines:
            return Lines(source.name, clickstream, allow_custom=allow_custom, allow_extra=allow_extra)

        if dry_run:
            with Rejects(rejects) as kept, Meter("checking", total_size(sources)) as meter:
                checked = validate(sources, lines_of, kept, meter)
            raise typer.Exit(report_validation(checked, kept, as_json=as_json))
        key, shop = credentials(partner_id)

        def client_of(**hooks: Any) -> AsyncTrackingClient:  # noqa: ANN401 - as the constructor takes them
            return AsyncTrackingClient(
                key(),
                shop,
                base_url=base_url,
                rate_limit=RateLimit(requests=rate),
                retry=RetryPolicy(max_elapsed=give_up_after),
                buffer=_BUFFER,
                allow_insecure_http=allow_insecure_http,
                **hooks,
            )

        # This client only checks the settings: a mistake must be reported before the file of rejects is created.
        client_of()
        # The report contains everything that the package logs. This handler prevents log records from being printed
        # over the progress bar.
        logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
        with Rejects(rejects) as kept, Meter("sending", total_size(sources)) as meter:
            delivery = Delivery(sources, lines_of=lines_of, rejects=kept, meter=meter, drain=drain, first=from_line)
            result = asyncio.run(delivery.run(client_of))
        raise typer.Exit(report(result, kept, watched=watch, as_json=as_json))
