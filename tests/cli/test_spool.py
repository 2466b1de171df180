"""The command `spool`: what people see of a spool, and what they can do about it."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from retailrocket_async import SqliteSpool
from retailrocket_async._spool.file import Settlement, SpoolFile
from retailrocket_async.cli._app import app
from tests.support.fakes import CODEC, event

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool with three events that wait and two dead letters."""
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


def run(*arguments: object, said: str | None = None) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, ["spool", *map(str, arguments)], input=said)


def test_stat(spool: Path) -> None:
    """`stat` tells whose spool it is, what waits since when, and the dead letters by reason."""
    result = run("stat", spool)
    assert result.exit_code == 0
    for told in ("shop-1", "events that wait", "3", "none right now", "rejected: HTTP 400", "expired", " d old"):
        assert told in result.stdout


def test_json(spool: Path) -> None:
    """Scripts read the same, and each event as JSON within JSON."""
    assert json.loads(run("stat", spool, "--json").stdout)["events"] == 3
    waiting = [json.loads(line) for line in run("list", spool, "--json").stdout.splitlines()]
    assert [event["id"] for event in waiting] == [1, 3, 5]
    assert waiting[0]["envelope"]["view"]["productId"] == 1
    [dead] = [json.loads(line) for line in run("dead", "list", spool, "--json", "--limit", "1").stdout.splitlines()]
    assert dead["reason"] == "rejected: HTTP 400"


def test_stat_sees_who_sends(spool: Path) -> None:
    """`stat` tells whether a process sends."""
    file = SpoolFile(spool)
    file.open()
    file.lease.acquire()
    assert "there is one" in run("stat", spool).stdout
    file.close()


def test_list(spool: Path) -> None:
    """`list` prints the oldest events and says where there are more."""
    result = run("list", spool, "--limit", 2)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "3"]
    assert '"productId":3' in result.stdout
    assert "and more" in result.stderr


def test_dead_list(spool: Path) -> None:
    """`dead list` prints dead letters with their reasons, and which of them may have been recorded."""
    result = run("dead", "list", spool)
    first, second = result.stdout.splitlines()
    assert "rejected: HTTP 400  {" in first
    assert "expired (perhaps recorded)  {" in second


def test_dead_replay(spool: Path) -> None:
    """`dead replay` lets dead letters wait again."""
    assert "1 dead letters wait" in run("dead", "replay", spool, "--limit", 1).stdout
    assert run("dead", "replay", spool).exit_code == 0
    found = SqliteSpool(spool).stat()
    assert (found.events, sum(found.dead.values())) == (5, 0)


def test_purge_asks(spool: Path) -> None:
    """`purge` removes nothing unless somebody means it."""
    result = run("purge", spool, said="n\n")
    assert result.exit_code == 2
    assert SqliteSpool(spool).stat().events == 3


def test_purge(spool: Path) -> None:
    """`purge` removes what waits, or the dead letters, and says how many."""
    assert "removed 3 events" in run("purge", spool, "--yes").stdout
    assert "removed 2 dead letters" in run("purge", spool, "--dead", said="y\n").stdout
    found = SqliteSpool(spool).stat()
    assert (found.events, found.dead) == (0, {})


def test_purge_leaves_what_is_being_sent(spool: Path) -> None:
    """What a process that sends has taken is not purged: it may be on its way."""
    file = SpoolFile(spool)
    file.open()
    file.lease.acquire()
    with file.transaction():
        file.events.mark_read(3)
    assert "removed 1 events" in run("purge", spool, "--yes").stdout
    file.close()


def test_export(spool: Path, tmp_path: Path) -> None:
    """`export` writes what `send` takes, for this user alone, touches no file that is there, and removes nothing."""
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
    """Of a damaged spool `export` writes every event that can be read, none that has left, and says what it skipped."""
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
    # And one event in its text.
    content[content.index(b'"productId":2000') + 1] ^= 0x80
    database.write_bytes(content)
    before = bytes(content)
    output = tmp_path / "events.ndjson"
    result = run("export", tmp_path / "spool", "--output", output)
    assert result.exit_code == 0
    assert "skipped 1 events that are damaged" in result.stderr
    found = [json.loads(line)["view"]["productId"] for line in output.read_bytes().splitlines()]
    assert set(found) <= set(range(111, 3001)) - {2000}
    # A page of rows that is lost takes its events with it; any other page takes none.
    assert len(found) == len(set(found)) >= 2889 - (40 if page == 30 else 0)
    assert run("export", tmp_path / "spool", "--dead").stdout.count("\n") == 10
    assert database.read_bytes() == before


def test_export_shows_nothing_on_a_terminal(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are personal data: without a file, and without a pipe, `export` writes nothing."""
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = run("export", spool)
    assert result.exit_code == 2
    assert "--output" in result.stderr
    assert result.stdout == ""


def test_no_spool(tmp_path: Path) -> None:
    """A directory without a spool is said to be one, and nothing is made there."""
    result = run("stat", tmp_path)
    assert result.exit_code == 2
    assert "there is no spool" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["stat"], ["list"], ["purge"], ["export"], ["dead"], ["dead", "list"], ["dead", "replay"], []]
)
def test_help(command: list[str]) -> None:
    """Every command explains itself."""
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
