"""``check``: tests the credentials, the address, the latency and the clock, without recording an event.

Every endpoint of the API records events. So the check sends a probe: a batch of one envelope whose event's name does
not exist. The probe has the key and the shop's id. The API records nothing, because the API refuses the probe: for the
body (400) or, if the API checks the address, the key and the shop before the body, for the address (404), the key (401)
or the shop (403).

The API's contract does not say whether the API checks the key or the body first. So a second probe is sent with a
made-up key. If the second probe is refused for the key, the API checks the key first, and a 400 for the first probe
proves that the user's key is right. If the second probe gets a 400 as well, the first 400 proves nothing about the key.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated, Any

import attrs
import typer

from retailrocket_async import (
    Abandoned,
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
from retailrocket_async.cli._measuring import Answers, Latency, Limit, Skew, find_limit
from retailrocket_async.cli._terminal import FAILED, AsJson, print_err, print_json, print_result, reporting_errors

EPILOG = """
Nothing is recorded: the command sends a batch with one event of a name that does not exist. If the key is not refused,
it sends the same with a made-up key, to see that the API checks keys at all. If everything works, five more requests
measure how long an answer takes, and how far this machine's clock is from the API's: events carry its time.

--limit sends up to 500 requests in a burst, until one is refused. For a second or two they use up the shop's request
limit, and its other programs get 429: do it on a test system, or at night.

\b
[bold]Examples[/bold]
  retailrocket-async check --partner-id 5ba1f2d397a5250001234567
  retailrocket-async check --json
  RETAILROCKET_BASE_URL=http://127.0.0.1:8080/1.0/ retailrocket-async check

[bold]Exit status[/bold]: 0 credentials and address work, 1 they do not (the sentence says what to correct) or the check
was not conclusive, 2 wrong arguments or configuration and nothing was sent.
"""

_PROBE = CustomEvent(name="connectionCheck", fields={})

_PROBES = 5
"""Number of further requests to measure the latency."""

_LARGE_SKEW = 2.0
"""If the clock is wrong by this number of seconds or more, the user is asked to set the clock."""


def check(  # noqa: PLR0913 - one for each option
    *,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    partner_id: PartnerId = "",
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="How long to wait for an answer.")] = 10,
    limit: Annotated[
        bool, typer.Option("--limit", help="Also measure how many requests a second are accepted; see below.")
    ] = False,
    as_json: AsJson = False,
    allow_insecure_http: AllowInsecureHttp = False,
) -> None:
    """Say whether the key, the shop's id and the address work together, and if not, what to correct.

    If all three are right, say how long an answer takes and whether this machine's clock is right.
    """
    with reporting_errors(), _warnings():
        key, shop = credentials(partner_id)

        def client_of(api_key: str, **options: Any) -> AsyncTrackingClient:  # noqa: ANN401 - as the constructor takes them
            return AsyncTrackingClient(
                api_key,
                shop,
                base_url=base_url,
                timeout=timeout,
                retry=RetryPolicy(max_attempts=1),
                allow_insecure_http=allow_insecure_http,
                **options,
            )

        findings = asyncio.run(_findings(key(), client_of, base_url, limit=limit))
        raise typer.Exit(_print_json(findings) if as_json else _print(findings))


@attrs.define
class Findings:
    """The result of a check.

    Attributes:
        verdict: the result as a sentence.
        works: whether the key, the shop and the address work together.
        latency: how long answers took; None if `works` is False.
        skew: the difference between this machine's clock and the API's clock; None if `works` is False,
            or if the answers' `Date` headers are missing or contradict each other.
        limit: the measured request limit; None without ``--limit``.
    """

    verdict: str
    works: bool
    latency: Latency | None = None
    skew: Skew | None = None
    limit: Limit | None = None


def _print(findings: Findings) -> int:
    """Print the findings as sentences, and return the exit status."""
    if not findings.works:
        print_err(f"error: {findings.verdict}")
        return FAILED
    print_result(f"ok: {findings.verdict}")
    if (latency := findings.latency) is not None:
        print_result(
            f"latency: {latency.median * 1000:.0f} ms, the median of {latency.answers} answers; the longest "
            f"{latency.longest * 1000:.0f} ms, the first one, with its connection, {latency.first * 1000:.0f} ms"
        )
        print_result(f"clock: {describe_clock(findings.skew)}")
    else:
        print_result("latency: not measured, because httpx cannot read the environment's settings for proxies")
    if (limit := findings.limit) is not None:
        print_result(f"limit: {_limit(limit)}")
    return 0


def describe_clock(skew: Skew | None) -> str:
    """Return a sentence about the error of this machine's clock, with the advice to set the clock if needed."""
    if skew is None:
        return "not compared: the API's answers have no Date header"
    if skew.least <= 0.0 <= skew.most:
        return f"this machine's agrees with the API's to {_within(skew):.1f} s; Date has whole seconds only"
    ahead = skew.least > 0.0
    least, most = (skew.least, skew.most) if ahead else (-skew.most, -skew.least)
    advice = "; set it, by NTP for example: events carry its time" if least >= _LARGE_SKEW else ""
    return f"this machine's is {least:.1f} to {most:.1f} s {'ahead of' if ahead else 'behind'} the API's{advice}"


def _within(skew: Skew) -> float:
    return max(-skew.least, skew.most)


def _limit(limit: Limit) -> str:
    if not limit.refused:
        return f"not reached: all {limit.taken} requests within {limit.seconds:.1f} s were accepted"
    asked = "" if limit.retry_after is None else f", Retry-After: {limit.retry_after}"
    return f"{limit.taken} requests within {limit.seconds:.1f} s were accepted, and the next was refused (429{asked})"


def _print_json(findings: Findings) -> int:
    """Print the findings as one line of JSON, and return the exit status."""
    print_json(
        {
            "works": findings.works,
            "verdict": findings.verdict,
            "latency": _plain(findings.latency),
            "clock_ahead": _plain(findings.skew),
            "limit": _plain(findings.limit),
        }
    )
    return 0 if findings.works else FAILED


def _plain(found: Latency | Skew | Limit | None) -> dict[str, object] | None:
    """Return a measurement as a dictionary for JSON, with floats rounded to four decimal places (0.1 ms)."""
    if found is None:
        return None
    fields: dict[str, object] = attrs.asdict(found)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}


async def _findings(key: str, client_of: Callable[..., AsyncTrackingClient], base_url: str, *, limit: bool) -> Findings:
    answers = Answers()
    http_client = answers.http_client(base_url)
    if http_client is None:
        async with client_of(key) as client:
            return Findings(*await _verdict(client, client_of(secrets.token_hex(12))))
    async with http_client:
        async with client_of(key, http_client=http_client) as client:
            findings = Findings(*await _verdict(client, client_of(secrets.token_hex(12))))
            if findings.works:
                for _ in range(_PROBES):
                    await _probe(client)
                findings.latency, findings.skew = Latency.of(answers.recorded), Skew.of(answers.recorded)
        if findings.works and limit:
            async with client_of(key, http_client=http_client, rate_limit=None) as client:
                findings.limit = await find_limit(answers, lambda: _probe(client))
    return findings


@contextmanager
def _warnings() -> Generator[None]:
    """Print the package's warnings about entries of `NO_PROXY` that the package ignores; print no other log records."""
    log, handler = logging.getLogger("retailrocket_async"), _Warnings()
    # The command prints all other errors itself. This handler prevents Python from printing log records, too.
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno == logging.WARNING and "left out" in message and message not in self._printed:
            # A check uses two clients, and both log the warning. `_printed` prevents the warning from being printed
            # twice.
            self._printed.add(message)
            print_err(f"warning: {message}")


async def _verdict(client: AsyncTrackingClient, stranger: AsyncTrackingClient) -> tuple[str, bool]:
    """Send the probe with both keys; return the result as a sentence, and whether everything works.

    Args:
        client: a client with the user's key.
        stranger: a client with a made-up key and without the argument `http_client`; this function closes this client.
    """
    outcome = await _probe(client)
    if isinstance(outcome, Abandoned) and (outcome.failure or "").startswith("tls:"):
        # An environment variable for certificates may be wrong. The error of httpx does not name the variable, but the
        # error of a client without the argument `http_client` does, so the probe is sent with such a client.
        async with stranger:
            explained = await _probe(stranger)
        if isinstance(explained, Abandoned) and explained.reason == "halted":
            outcome = explained
    match outcome:
        case Delivered():
            recorded = "it also accepted the probe, an event named connectionCheck"
        case Rejected(status=400):
            recorded = "nothing was recorded"
        case _:
            return explain(outcome), False
    async with stranger:
        control = await _probe(stranger)
    match control:
        case Rejected(status=401 | 403):
            return f"the API takes this key, for this shop, at this address ({recorded})", True
        case Delivered() | Rejected(status=400):
            verdict = "the API gave a made-up key the same answer as this one: send an event to see if the key works"
            return verdict, False
        case _:
            return f"the address answers, but whether the key is right is not known: {explain(control)}", False


async def _probe(client: AsyncTrackingClient) -> Outcome:
    try:
        return await client.send_batch([_PROBE])
    except DeliveryError as error:
        return error.outcome
