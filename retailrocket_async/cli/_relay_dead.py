"""``relay-dead``: the messages that a relay gave up, listed, published again, or removed."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeAlias, TypeVar

import typer

from retailrocket_async import ConfigurationError
from retailrocket_async.cli._relay import RelayName, SourceUrl, open_source
from retailrocket_async.cli._terminal import FAILED, fail, note, one_sentence, say
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

    If the envelope was shortened, as the broker could not keep all of it, its size and SHA-256 come as well.
    """
    letters = _ask(source, name, lambda dead: dead.list_dead(most))
    for letter in letters:
        say(
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
    note(f"{len(letters):,} dead letters")


def replay(*, source: SourceUrl = "", name: RelayName = "", most: _Most = None, everything: _All = False) -> None:
    """Publish dead letters again, the oldest first, and remove each once it is published.

    What made them dead letters will do so again, unless it was mended meanwhile. Those that were shortened stay.
    """
    count = _how_many(most, everything)
    note(f"{_ask(source, name, lambda dead: dead.replay_dead(count)):,} dead letters published again")


def purge(*, source: SourceUrl = "", name: RelayName = "", most: _Most = None, everything: _All = False) -> None:
    """Remove dead letters for good, the oldest first."""
    count = _how_many(most, everything)
    note(f"{_ask(source, name, lambda dead: dead.purge_dead(count)):,} dead letters removed")


def _how_many(most: int | None, everything: bool) -> int:  # noqa: FBT001 - as the option gives it
    if (most is None) != everything:
        fail("say how many: either --most N or --all")
    return _ALL if most is None else most


def _ask(source: str, name: str, question: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
    with one_sentence():
        opened = open_source(source, name)
        try:
            return asyncio.run(_answer(opened, question))
        except (ConfigurationError, typer.Exit):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a broker's library raises
            fail(f"the broker failed: {type(error).__name__}: {without_secrets(str(error))}", FAILED)


async def _answer(source: Source, question: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
    if not isinstance(source, DeadLetters):
        fail("this source keeps no dead letters")
    try:
        await source.open()
        return await question(source)
    finally:
        await source.aclose()
