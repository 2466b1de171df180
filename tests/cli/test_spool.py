"""Tests of the command `spool`: it shows, exports, removes and replays events and dead letters of a spool on disk."""

from __future__ import annotations

import json
import os
import stat
from io import BytesIO, TextIOWrapper
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import SqliteSpool
from retailrocket_async._spool.file import Settlement, SpoolFile
from tests.support.command import run_command
from tests.support.fakes import CODEC, event

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from tests.support.command import Result


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Return the directory of a spool (a queue on disk) with three waiting events and two dead letters."""
    file = SpoolFile(tmp_path / "spool", shop="shop-1")
    file.open()
    with file.transaction():
        file.events.append([CODEC.encode(event(number)) for number in range(1, 6)], 1e9)
        file.settle(Settlement([(2, 2)], '["Rejected",{"status":400},""]', "rejected: HTTP 400"), 1.1e9)
        file.settle(
            Settlement([(4, 4)], '["Dropped",{"reason":"expired"},"view"]', "expired", maybe_recorded=True), 1.2e9
        )
    file.close()
    return tmp_path / "spool"


class Terminal(TextIOWrapper):
    """An output in memory that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def run(*arguments: object, answer: str = "", stdout: TextIO | None = None) -> Result:
    """Run a `spool` command, and answer its question with `answer`."""
    return run_command("spool", *arguments, stdin=answer.encode(), stdout=stdout)


def test_stat(spool: Path) -> None:
    """If `stat` is run, it prints the shop, the waiting events and their age, and the dead letters by reason."""
    result = run("stat", spool)
    assert result.exit_code == 0
    for text in ("shop-1", "waiting events", "3", "none", "rejected: HTTP 400", "expired", " d old"):
        assert text in result.stdout


def test_json(spool: Path) -> None:
    """If `--json` is given, the commands print JSON, with each event as an object."""
    assert json.loads(run("stat", spool, "--json").stdout)["events"] == 3
    waiting = [json.loads(line) for line in run("list", spool, "--json").stdout.splitlines()]
    assert [event["id"] for event in waiting] == [1, 3, 5]
    assert waiting[0]["envelope"]["view"]["productId"] == 1
    [dead] = [json.loads(line) for line in run("dead", "list", spool, "--json", "--limit", "1").stdout.splitlines()]
    assert dead["reason"] == "rejected: HTTP 400"


def test_stat_sees_who_sends(spool: Path) -> None:
    """If a process is sending the spool's events, `stat` says so."""
    file = SpoolFile(spool)
    file.open()
    file.lease.acquire()
    assert "running" in run("stat", spool).stdout
    file.close()


def test_list(spool: Path) -> None:
    """If `list` is run, it prints the oldest events, and says if there are more."""
    result = run("list", spool, "--limit", 2)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "3"]
    assert '"productId":3' in result.stdout
    assert "and more" in result.stderr


def test_dead_list(spool: Path) -> None:
    """If `dead list` is run, it prints dead letters with reasons, and which of them may have been recorded."""
    result = run("dead", "list", spool)
    first, second = result.stdout.splitlines()
    assert "rejected: HTTP 400  {" in first
    assert "expired (perhaps recorded)  {" in second


def test_dead_replay(spool: Path) -> None:
    """If `dead replay` is run, dead letters become waiting events again, which will be sent."""
    assert "1 dead letters wait" in run("dead", "replay", spool, "--limit", 1).stdout
    assert run("dead", "replay", spool).exit_code == 0
    found = SqliteSpool(spool).stat()
    assert (found.events, sum(found.dead.values())) == (5, 0)


def test_purge_asks(spool: Path) -> None:
    """If `purge` is not confirmed, nothing is removed."""
    result = run("purge", spool, answer="n\n")
    assert result.exit_code == 2
    assert SqliteSpool(spool).stat().events == 3


def test_purge(spool: Path) -> None:
    """If `purge` is confirmed, it removes the waiting events or dead letters, and says how many."""
    assert "removed 3 waiting events" in run("purge", spool, "--yes").stdout
    assert "removed 2 dead letters" in run("purge", spool, "--dead", answer="y\n").stdout
    found = SqliteSpool(spool).stat()
    assert (found.events, found.dead) == (0, {})


def test_purge_leaves_what_is_being_sent(spool: Path) -> None:
    """If another process has read events to send them, `purge` keeps them, because they may be in flight."""
    file = SpoolFile(spool)
    file.open()
    file.lease.acquire()
    with file.transaction():
        file.events.mark_read(3)
    assert "removed 1 waiting events" in run("purge", spool, "--yes").stdout
    file.close()


def test_export(spool: Path, tmp_path: Path) -> None:
    """If `export` is run, it writes lines that `send` accepts, and removes and overwrites nothing."""
    output = tmp_path / "events.ndjson"
    assert run("export", spool, "--output", output).exit_code == 0
    lines = output.read_bytes().splitlines()
    assert [CODEC.decode(line) for line in lines] == [event(number) for number in (1, 3, 5)]
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    again = run("export", spool, "--output", output)
    assert again.exit_code == 2
    assert os.strerror(17) in again.stderr
    assert run("export", spool, "--dead").stdout.count("\n") == 2
    assert SqliteSpool(spool).stat().events == 3


@pytest.mark.parametrize("page", [1, 3, 30], ids=["schema", "root", "rows"])
def test_export_of_a_damaged_spool(tmp_path: Path, page: int) -> None:
    """If the spool is damaged, `export` writes every readable event, and says how many it skipped."""
    file = SpoolFile(tmp_path / "spool", shop="shop-1")
    file.open()
    with file.transaction():
        file.events.append([CODEC.encode(event(number)) for number in range(1, 3001)], 1e9)
    with file.transaction():
        file.settle(Settlement([(1, 100)], '["Delivered",{"status":200},""]'), 1e9)
        file.settle(Settlement([(101, 110)], '["Rejected",{"status":400},""]', "rejected: HTTP 400"), 1e9)
    file.close()
    database = tmp_path / "spool" / "events.db"
    content = bytearray(database.read_bytes())
    content[(page - 1) * 4096 : (page - 1) * 4096 + 300] = bytes(300)
    # The text of one event is damaged, too.
    content[content.index(b'"productId":2000') + 1] ^= 0x80
    database.write_bytes(content)
    before = bytes(content)
    output = tmp_path / "events.ndjson"
    result = run("export", tmp_path / "spool", "--output", output)
    assert result.exit_code == 0
    assert "skipped 1 damaged events" in result.stderr
    found = [json.loads(line)["view"]["productId"] for line in output.read_bytes().splitlines()]
    assert set(found) <= set(range(111, 3001)) - {2000}
    # Events are lost only if the damaged page contains rows.
    assert len(found) == len(set(found)) >= 2889 - (40 if page == 30 else 0)
    assert run("export", tmp_path / "spool", "--dead").stdout.count("\n") == 10
    assert database.read_bytes() == before


def test_export_shows_nothing_on_a_terminal(spool: Path) -> None:
    """If the output is a terminal, `export` writes nothing, because events contain personal data."""
    terminal = Terminal(BytesIO())
    result = run("export", spool, stdout=terminal)
    assert result.exit_code == 2
    assert ("", True) == (result.stdout, "--output" in result.stderr)


def test_no_spool(tmp_path: Path) -> None:
    """If the directory has no spool, this is reported, and nothing is created."""
    result = run("stat", tmp_path)
    assert result.exit_code == 2
    assert "there is no spool" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["stat"], ["list"], ["purge"], ["export"], ["dead"], ["dead", "list"], ["dead", "replay"], []]
)
def test_help(command: list[str]) -> None:
    """If `--help` is given, every command prints a help page."""
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
