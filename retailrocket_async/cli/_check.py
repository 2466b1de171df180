"""``check``: whether the credentials and the address work, without recording anything.

The API has no harmless endpoint, so the probe is a batch of one envelope whose name no event has. It goes where every
batch goes, with the key and the shop's id, and can record nothing: the API refuses it for its body (400), or earlier
for its key (401), its shop (403) or its address (404).

The contract does not say what is looked at first, key or body. Only where the same probe with a made-up key is
refused for that key, a probe that was not has proved its own.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Annotated

import typer

from retailrocket_async import (
    AsyncTrackingClient,
    CustomEvent,
    Delivered,
    DeliveryError,
    Outcome,
    Rejected,
    RetryPolicy,
)
from retailrocket_async.cli._credentials import (
    DEFAULT_BASE_URL,
    AllowInsecureHttp,
    BaseUrl,
    PartnerId,
    credentials,
)
from retailrocket_async.cli._explain import explain
from retailrocket_async.cli._terminal import FAILED, note, one_sentence, tell

EPILOG = """
Nothing is recorded: what is sent is a batch with an event of a name that does not exist, once with the key and, if
that is not refused for its key, once with a made-up one, to see that the API looks at keys at all.

\b
[bold]Examples[/bold]
  retailrocket-async check --partner-id 5ba1f2d397a5250001234567
  RETAILROCKET_BASE_URL=http://127.0.0.1:8080/1.0/ retailrocket-async check

[bold]Exit status[/bold]: 0 credentials and address work, 1 they do not (the sentence says what to mend) or it could
not be found out, 2 wrong arguments or configuration and nothing was sent.
"""

_PROBE = CustomEvent(name="connectionCheck", fields={})


def check(
    *,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    partner_id: PartnerId = "",
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="How long to wait for an answer.")] = 10,
    allow_insecure_http: AllowInsecureHttp = False,
) -> None:
    """Say whether the key, the shop's id and the address work together, and if not, what to mend."""
    with one_sentence():
        key, shop = credentials(partner_id)

        def client_of(api_key: Callable[[], str]) -> AsyncTrackingClient:
            return AsyncTrackingClient(
                api_key(),
                shop,
                base_url=base_url,
                timeout=timeout,
                retry=RetryPolicy(max_attempts=1),
                allow_insecure_http=allow_insecure_http,
            )

        verdict = asyncio.run(_verdict(client_of(key), client_of(lambda: secrets.token_hex(12))))
        raise typer.Exit(_tell(*verdict))


def _tell(verdict: str, works: bool) -> int:  # noqa: FBT001 - the two halves of one finding
    """Print the verdict, and return the exit status that says the same."""
    if not works:
        note(f"error: {verdict}")
        return FAILED
    tell(f"ok: {verdict}")
    return 0


async def _verdict(client: AsyncTrackingClient, stranger: AsyncTrackingClient) -> tuple[str, bool]:
    """Return what was found out as a sentence, and whether everything works."""
    # What goes wrong is told here; the package's log would tell it a second time.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    outcome = await _probe(client)
    match outcome:
        case Delivered():
            recorded = "it also accepted the probe, an event named connectionCheck"
        case Rejected(status=400):
            recorded = "nothing was recorded"
        case _:
            return explain(outcome), False
    control = await _probe(stranger)
    match control:
        case Rejected(status=401 | 403):
            return f"the API takes this key, for this shop, at this address ({recorded})", True
        case Delivered() | Rejected(status=400):
            told = (
                "the address answers, but to a made-up key as to this one: send an event to see whether the key works"
            )
            return told, False
        case _:
            return f"the address answers; whether it takes the key could not be found out: {explain(control)}", False


async def _probe(client: AsyncTrackingClient) -> Outcome:
    async with client:
        try:
            return await client.send_batch([_PROBE])
        except DeliveryError as error:
            return error.outcome
