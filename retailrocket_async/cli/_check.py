"""``check``: whether the credentials and the address work, how fast, by what clock; without recording anything.

The API has no harmless endpoint, so the probe is a batch of one envelope whose name no event has. It goes where every
batch goes, with the key and the shop's id, and can record nothing: the API refuses it for its body (400), or earlier
for its key (401), its shop (403) or its address (404).

The contract does not say what is looked at first, key or body. Only where the same probe with a made-up key is
refused for that key, a probe that was not has proved its own.
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
from retailrocket_async.cli._terminal import FAILED, AsJson, note, one_sentence, tell, tell_json

EPILOG = """
Nothing is recorded: what is sent is a batch with an event of a name that does not exist, once with the key and, if
that is not refused for its key, once with a made-up one, to see that the API looks at keys at all. Where all is well
five more show how long an answer takes, and how far this machine's clock is from the API's: events carry its time.

--limit sends up to 500 in a burst, until one is refused. For a second or two that leaves nothing of the shop's limit to
its other programs: ask a test system, or at night.

\b
[bold]Examples[/bold]
  retailrocket-async check --partner-id 5ba1f2d397a5250001234567
  retailrocket-async check --json
  RETAILROCKET_BASE_URL=http://127.0.0.1:8080/1.0/ retailrocket-async check

[bold]Exit status[/bold]: 0 credentials and address work, 1 they do not (the sentence says what to mend) or it could
not be found out, 2 wrong arguments or configuration and nothing was sent.
"""

_PROBE = CustomEvent(name="connectionCheck", fields={})

_PROBES = 5
"""Requests more that show how long one takes."""

_WRONG = 2.0
"""Seconds by which a clock is wrong enough to mend it."""


def check(  # noqa: PLR0913 - one for each option
    *,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    partner_id: PartnerId = "",
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="How long to wait for an answer.")] = 10,
    limit: Annotated[
        bool, typer.Option("--limit", help="Also find out how many requests a second are let in; see below.")
    ] = False,
    as_json: AsJson = False,
    allow_insecure_http: AllowInsecureHttp = False,
) -> None:
    """Say whether the key, the shop's id and the address work together, and if not, what to mend.

    If so, tell how long an answer takes and whether this machine's clock is right.
    """
    with one_sentence(), _warnings():
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

        findings = asyncio.run(_find_out(key(), client_of, base_url, limit=limit))
        raise typer.Exit(_tell_json(findings) if as_json else _tell(findings))


@attrs.define
class Findings:
    """What was found out.

    Attributes:
        verdict: a sentence.
        works: whether everything does.
        latency: None where it does not.
        skew: None where it does not, or the answers do not tell the time.
        limit: None where nobody asked.
    """

    verdict: str
    works: bool
    latency: Latency | None = None
    skew: Skew | None = None
    limit: Limit | None = None


def _tell(findings: Findings) -> int:
    """Print what was found out, and return the exit status that says the same."""
    if not findings.works:
        note(f"error: {findings.verdict}")
        return FAILED
    tell(f"ok: {findings.verdict}")
    if (latency := findings.latency) is not None:
        tell(
            f"latency: {latency.median * 1000:.0f} ms, the median of {latency.answers} answers; the longest "
            f"{latency.longest * 1000:.0f} ms, the first one, with its connection, {latency.first * 1000:.0f} ms"
        )
        tell(f"clock: {_clock(findings.skew)}")
    else:
        tell("latency: not measured, as httpx cannot read the environment's settings for proxies")
    if (limit := findings.limit) is not None:
        tell(f"limit: {_limit(limit)}")
    return 0


def _clock(skew: Skew | None) -> str:
    if skew is None:
        return "the answers do not say what time it is there"
    if skew.least <= 0.0 <= skew.most:
        return f"this machine's agrees with the API's, as far as its whole seconds tell: to {_within(skew):.1f} s"
    ahead = skew.least > 0.0
    least, most = (skew.least, skew.most) if ahead else (-skew.most, -skew.least)
    mend = "; set it, by NTP for example: events carry its time" if least >= _WRONG else ""
    return f"this machine's is {least:.1f} to {most:.1f} s {'ahead of' if ahead else 'behind'} the API's{mend}"


def _within(skew: Skew) -> float:
    return max(-skew.least, skew.most)


def _limit(limit: Limit) -> str:
    if not limit.refused:
        return f"none was met: all {limit.taken} requests within {limit.seconds:.1f} s were let in"
    asked = "" if limit.retry_after is None else f", Retry-After: {limit.retry_after}"
    return f"{limit.taken} requests within {limit.seconds:.1f} s were let in, and the next was not (429{asked})"


def _tell_json(findings: Findings) -> int:
    tell_json(
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
    """Return what was found with its seconds to a tenth of a millisecond."""
    if found is None:
        return None
    fields: dict[str, object] = attrs.asdict(found)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}


async def _find_out(key: str, client_of: Callable[..., AsyncTrackingClient], base_url: str, *, limit: bool) -> Findings:
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
                findings.latency, findings.skew = Latency.of(answers.noted), Skew.of(answers.noted)
        if findings.works and limit:
            async with client_of(key, http_client=http_client, rate_limit=None) as client:
                findings.limit = await find_limit(answers, lambda: _probe(client))
    return findings


@contextmanager
def _warnings() -> Generator[None]:
    """Print what the package warns of before any request, once: an entry of `NO_PROXY` that is left out."""
    log, handler = logging.getLogger("retailrocket_async"), _Warnings()
    # What else goes wrong is told here; the package's log would tell it a second time.
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
            # Each of the two clients of a check says so.
            self._printed.add(message)
            note(f"warning: {message}")


async def _verdict(client: AsyncTrackingClient, stranger: AsyncTrackingClient) -> tuple[str, bool]:
    """Return what was found out as a sentence, and whether everything works."""
    outcome = await _probe(client)
    if isinstance(outcome, Abandoned) and (outcome.failure or "").startswith("tls:"):
        # The certificates may be to blame. The package's own client reads their variables more closely than httpx.
        async with stranger:
            closer = await _probe(stranger)
        if isinstance(closer, Abandoned) and closer.reason == "halted":
            outcome = closer
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
            told = (
                "the address answers, but to a made-up key as to this one: send an event to see whether the key works"
            )
            return told, False
        case _:
            return f"the address answers; whether it takes the key could not be found out: {explain(control)}", False


async def _probe(client: AsyncTrackingClient) -> Outcome:
    try:
        return await client.send_batch([_PROBE])
    except DeliveryError as error:
        return error.outcome
