"""``relay-dead``: lists a relay's dead letters, publishes them again, or removes them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeAlias, TypeVar

import typer

from retailrocket_async import ConfigurationError
from retailrocket_async.cli._relay import RelayName, SourceUrl, open_source
from retailrocket_async.cli._terminal import FAILED, fail, print_err, print_out, reporting_errors
from retailrocket_async.relay import DeadLetters, Source, without_secrets

_T = TypeVar("_T")

ABOUT = "Look into the dead letters of a relay: list them, publish them again, or remove them."

EPILOG = """
\b
[bold]Examples[/bold]
  retailrocket-async relay-dead list --most 10
  retailrocket-async relay-dead replay --all
  retailrocket-async relay-dead purge --most 100

[bold]Exit status[/bold]: 0 done, 1 the broker failed, 2 wrong arguments or configuration.
"""

_Most: TypeAlias = Annotated[
    int | None, typer.Option("--most", min=1, metavar="N", show_default=False, help="The oldest N at most.")
]
_All: TypeAlias = Annotated[bool, typer.Option("--all", help="All of them.")]

_ALL = 2**31 - 1


def list_(
    *,
    source: SourceUrl = "",
    name: RelayName = "",
    most: Annotated[int, typer.Option("--most", min=1, metavar="N", help="The oldest N at most.")] = 100,
) -> None:
    """Print the oldest dead letters, one line of JSON each: id, message, reason, time, and the envelope as it was.

    If the broker could not store the whole envelope, the line has the envelope's start, full size and SHA-256.
    """
    letters = _call(source, name, lambda dead: dead.list_dead(most))
    for letter in letters:
        print_out(
            json.dumps(
                {
                    "id": letter.id,
                    "message_id": letter.message_id,
                    "reason": letter.reason,
                    "died_at": datetime.fromtimestamp(letter.died_at, UTC).isoformat(timespec="seconds"),
                    "envelope": letter.body.decode(errors="backslashreplace"),
                    **({} if letter.size is None else {"size": letter.size, "sha256": letter.sha256}),
                },
                ensure_ascii=False,
            )
        )
    print_err(f"{len(letters):,} dead letters")


def replay(*, source: SourceUrl = "", name: RelayName = "", most: _Most = None, everything: _All = False) -> None:
    """Publish dead letters again, the oldest first, and remove each letter once it is published.

    The messages become dead letters again unless the cause was corrected. Shortened dead letters are not published.
    """
    count = _how_many(most, everything)
    print_err(f"{_call(source, name, lambda dead: dead.replay_dead(count)):,} dead letters published again")


def purge(*, source: SourceUrl = "", name: RelayName = "", most: _Most = None, everything: _All = False) -> None:
    """Remove dead letters for good, the oldest first."""
    count = _how_many(most, everything)
    print_err(f"{_call(source, name, lambda dead: dead.purge_dead(count)):,} dead letters removed")


def _how_many(most: int | None, everything: bool) -> int:  # noqa: FBT001 - as the option gives it
    if (most is None) != everything:
        fail("give either --most N or --all")
    return _ALL if most is None else most


def _call(source: str, name: str, action: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
    """Open the source, run `action` on its dead letters, and return its result; report a failure and exit."""
    with reporting_errors():
        opened = open_source(source, name)
        try:
            return asyncio.run(_called(opened, action))
        except (ConfigurationError, typer.Exit):
            raise
        except Exception as error:  # noqa: BLE001 - a broker's library may raise any error
            fail(f"the broker failed: {type(error).__name__}: {without_secrets(str(error))}", FAILED)


async def _called(source: Source, action: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
    if not isinstance(source, DeadLetters):
        fail("this source keeps no dead letters")
    try:
        await source.open()
        return await action(source)
    finally:
        await source.aclose()
