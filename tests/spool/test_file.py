"""The spool's file: what is added comes out as it was, in order, and leaves only together with what became of it."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import stat
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async import SpoolError
from retailrocket_async._spool.directory import DATABASE, network_mount
from retailrocket_async._spool.failures import SpoolFileFullError
from retailrocket_async._spool.file import Settlement, SpoolFile
from retailrocket_async._spool.id_ranges import ranges
from tests.support.effort import most
from tests.support.fakes import CODEC, event
from tests.support.strategies import events as any_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DELIVERED = '["Delivered",{"status":200},""]'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., SpoolFile]]:
    """Makes the file of a spool with that name in the test's directory; closes it when the test ends."""
    with ExitStack() as made:
        yield lambda name="s", **options: made.enter_context(closing(SpoolFile(tmp_path / name, **options)))


@pytest.fixture
def file(make: Callable[..., SpoolFile]) -> SpoolFile:
    """An open, empty spool."""
    opened = make("spool")
    opened.open()
    return opened


def add(file: SpoolFile, envelopes: Sequence[bytes], at: float = 1.0) -> int:
    """Add events in a transaction of their own."""
    with file.transaction():
        return file.events.append(envelopes, at)


def settle(file: SpoolFile, ids: Sequence[int], dead: str | None = None, at: float = 1.0) -> None:
    """Settle events in a transaction of their own."""
    with file.transaction():
        file.settle(Settlement(ranges(ids), DELIVERED, dead), at)


def numbered(count: int, first: int = 1) -> list[bytes]:
    """Return envelopes that can be told from each other."""
    return [CODEC.encode(event(number)) for number in range(first, first + count)]


@settings(max_examples=most(30), deadline=None)
@given(st.lists(any_events(), min_size=1, max_size=20))
def test_events_come_out_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, given_events: list) -> None:
    """Whatever an event holds, its JSON comes out of the file byte for byte."""
    file = SpoolFile(tmp_path_factory.mktemp("spool") / "s")
    file.open()
    envelopes = [CODEC.encode(each) for each in given_events]
    last = add(file, envelopes)
    rows = file.events.read(0, 1000, 1 << 30)
    file.close()
    assert rows.bodies == envelopes
    assert rows.ids == list(range(last - len(envelopes) + 1, last + 1))


@given(st.sets(st.integers(1, 200)))
def test_ranges(ids: set[int]) -> None:
    """Ranges hold exactly the ids that they were made of, and no two of them touch."""
    found = ranges(ids)
    assert {number for first, last in found for number in range(first, last + 1)} == ids
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(found))


def test_reading_is_bounded(file: SpoolFile) -> None:
    """Reading returns no more events and bytes than asked for, but one event at least, however large."""
    bodies = numbered(10)
    add(file, bodies)
    assert file.events.read(0, 3, 1 << 20).bodies == bodies[:3]
    assert file.events.read(0, 10, len(bodies[0]) + len(bodies[1])).bodies == bodies[:2]
    assert file.events.read(0, 10, 1).bodies == bodies[:1]
    assert file.events.read(3, 2, 1 << 20).ids == [4, 5]
    assert file.events.read(10, 2, 1 << 20) == ([], [], [])


def test_ids_are_never_used_again(file: SpoolFile) -> None:
    """An id is not given out a second time, though the last event is gone."""
    assert add(file, numbered(3)) == 3
    settle(file, [1, 2, 3])
    assert add(file, numbered(1)) == 4


def test_what_is_settled_is_gone_and_logged(file: SpoolFile) -> None:
    """Settled events leave the file, others stay, and the log tells which and what."""
    add(file, numbered(20))
    settle(file, [2, 3, 5])
    settle(file, [number for number in range(6, 21) if number % 2])
    assert file.events.read(0, 100, 1 << 20).ids == [1, 4, *range(6, 21, 2)]
    first, second = file.log.after(0)
    assert (first.ids, first.outcome) == ([(2, 3), (5, 5)], DELIVERED)
    assert len(second.ids) == 7
    assert file.log.after(first.seq) == [second]
    assert file.log.last() == second.seq


def test_the_log_forgets(file: SpoolFile) -> None:
    """The log does not grow for ever: after ten minutes it forgets."""
    add(file, numbered(3))
    settle(file, [1], at=1000.0)
    settle(file, [2], at=1700.0)
    settle(file, [3], at=1710.0)
    assert [entry.ids for entry in file.log.after(0)] == [[(2, 2)], [(3, 3)]]


def test_dead_letters(file: SpoolFile) -> None:
    """A dead letter keeps its JSON, its reason and its time, and can be made to wait again, under a new id."""
    bodies = numbered(3)
    add(file, bodies, at=5.0)
    settle(file, [2], dead="rejected: HTTP 400", at=9.0)
    dead = file.dead.read(0, 10)
    assert dead == ([2], [5.0], [9.0], ["rejected: HTTP 400"], [False], [bodies[1]])
    assert (file.events.count(), file.dead.counts()) == (2, {"rejected: HTTP 400": 1})
    with file.transaction():
        assert file.dead.replay(10, 20.0) == 1
    assert file.events.read(3, 10, 1 << 20) == ([4], [20.0], [bodies[1]])
    assert file.dead.read(0, 10).ids == []


def test_dead_letters_are_bounded(make: Callable[..., SpoolFile]) -> None:
    """Of dead letters the newest are kept, as many as may be and for as long as they may be."""
    file = make(most_dead=3, dead_age=100.0)
    file.open()
    add(file, numbered(10))
    for number in range(1, 6):
        settle(file, [number], dead="rejected", at=float(number))
    assert file.dead.read(0, 10).ids == [3, 4, 5]
    settle(file, [6], dead="rejected", at=104.5)
    assert file.dead.read(0, 10).ids == [5, 6]


def test_a_transaction_is_all_or_nothing(file: SpoolFile) -> None:
    """Where anything in a transaction raises, nothing of it has happened."""
    add(file, numbered(2))
    with pytest.raises(ZeroDivisionError), file.transaction():  # noqa: PT012 - what is done before it counts
        file.events.append(numbered(5), 1.0)
        file.settle(Settlement([(1, 1)], DELIVERED), 1.0)
        raise ZeroDivisionError
    assert file.events.read(0, 10, 1 << 20).ids == [1, 2]
    assert file.log.after(0) == []


def test_the_engine_keeps_the_bound(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """A file never grows beyond its bound; settling still works, makes room, and nothing is damaged."""
    file = make(max_bytes=1 << 20)
    file.open()
    written = 0
    with pytest.raises(SpoolFileFullError):  # noqa: PT012 - sooner or later
        while True:
            written = add(file, numbered(500))
    assert (tmp_path / "s" / DATABASE).stat().st_size <= (2 << 20) + 4096
    settle(file, list(range(1, written + 1)))
    assert add(file, numbered(500)) > written
    file.close()
    with closing(sqlite3.connect(tmp_path / "s" / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_file_shrinks(file: SpoolFile, tmp_path: Path) -> None:
    """Once events have left, their room goes back to the file system."""
    last = add(file, numbered(20_000))
    settle(file, list(range(1, last + 1)))
    while file.shrink():
        pass
    file.close()
    assert (tmp_path / "spool" / DATABASE).stat().st_size < 1 << 20


def test_files_are_private(file: SpoolFile, tmp_path: Path) -> None:
    """Directory and files can be used by their owner alone, whatever the umask is."""
    add(file, numbered(1))
    assert file.lease.acquire()
    directory = tmp_path / "spool"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert len(modes) == 5
    assert set(modes.values()) == {0o600}


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """A directory with rights for others is refused, with the command that mends it."""
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(SpoolError, match="chmod 700"):
        make("open").open()


def test_another_shop_is_refused(make: Callable[..., SpoolFile]) -> None:
    """A spool belongs to the shop that has used it first."""
    first = make(shop="one")
    first.open()
    first.close()
    with pytest.raises(SpoolError, match="belongs to partner_id 'one'"):
        make(shop="two").open()
    again = make(shop="one")
    again.open()
    assert again.shop() == "one"


def test_a_newer_schema_is_refused(file: SpoolFile, tmp_path: Path) -> None:
    """A file that a newer version has written is not touched."""
    file.close()
    with closing(sqlite3.connect(tmp_path / "spool" / DATABASE)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(SpoolError, match="newer version"):
        file.open()


def test_a_migration_that_was_cut_off_is_done_again(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """A file without a schema, as a crash in the very first moment leaves it, gets one."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / DATABASE).touch(mode=0o600)
    file = make()
    file.open()
    assert add(file, numbered(1)) == 1


def test_a_damaged_file_is_told(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """A file that is no database gives an error that says what to do."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / DATABASE).write_bytes(b"not a database, though long enough for a header" * 100)
    with pytest.raises(SpoolError, match="damaged"):
        make().open()


def test_a_directory_without_rights_is_told(unprivileged: Path) -> None:
    """If the directory cannot be written, the error says so."""
    (unprivileged / "ro").mkdir(mode=0o500)
    with pytest.raises(SpoolError, match="cannot be used"):
        SpoolFile(unprivileged / "ro" / "s").open()


def test_a_path_that_is_a_file_is_told(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """Where a file is in the place of the directory the error says so."""
    (tmp_path / "s").write_text("here already")
    with pytest.raises(SpoolError, match=os.strerror(errno.ENOTDIR) + "|cannot be used|could be read"):
        make().open()


def test_one_leads(make: Callable[..., SpoolFile]) -> None:
    """One connection at a time leads; once it is closed another one can."""
    first, second = make(), make()
    first.open()
    second.open()
    assert first.lease.acquire()
    assert first.lease.acquire()
    assert not second.lease.acquire()
    first.close()
    assert second.lease.acquire()
    second.lease.release()
    first.open()
    assert first.lease.acquire()


def test_many_open_at_once(make: Callable[..., SpoolFile]) -> None:
    """Any number of connections may open a spool for the first time at the same moment."""
    failures: list[Exception] = []
    files = [make(shop="one") for _ in range(20)]
    barrier = threading.Barrier(len(files))

    def open_and_write(file: SpoolFile) -> None:
        try:
            barrier.wait()
            file.open()
            add(file, numbered(1))
        except Exception as error:  # noqa: BLE001 - told by the assertion
            failures.append(error)

    threads = [threading.Thread(target=open_and_write, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files[0].events.read(0, 100, 1 << 20).ids == list(range(1, 21))


def test_what_a_dead_process_may_have_sent_is_known(file: SpoolFile, make: Callable[..., SpoolFile]) -> None:
    """The mark of what may be on its way outlives the process that made it."""
    assert file.events.read_to() == 0
    with file.transaction():
        file.events.mark_read(7)
    file.close()
    later = make("spool")
    later.open()
    assert later.events.read_to() == 7


def test_usage_does_not_count(file: SpoolFile) -> None:
    """The figures for a gauge are right where events leave in order."""
    assert file.usage().oldest_at is None
    add(file, numbered(5), at=3.0)
    settle(file, [1, 2], dead="rejected")
    usage = file.usage()
    assert (usage.events, usage.dead, usage.oldest_at) == (3, 2, 3.0)
    assert usage.bytes == file.bytes_used() > 0


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:50 / /mnt/share rw - nfs4 server:/share rw
31 30 0:51 / /mnt/share/local rw - xfs /dev/vdb rw
32 22 0:52 / /mnt/with\\040space rw - cifs //server/share rw
33 22 0:53 / /mnt/over rw - ext4 /dev/vdc rw
34 33 0:54 / /mnt/over rw - fuse.sshfs host: rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/spool", None),
        ("/mnt/share/spool", "nfs4"),
        ("/mnt/shared/spool", None),
        ("/mnt/share/local/spool", None),
        ("/mnt/with space/spool", "cifs"),
        ("/mnt/over/spool", "fuse.sshfs"),
    ],
)
def test_network_file_systems_are_recognised(path: str, kind: str | None) -> None:
    """The deepest mount decides, the later one of two at the same place."""
    assert network_mount(MOUNTS.splitlines(), Path(path)) == kind


def test_what_is_settled_again_counts_once(file: SpoolFile) -> None:
    """A settlement that is written again, as its first transaction raised, is logged for what still waited alone."""
    add(file, numbered(12))
    settle(file, [1, 2])
    settle(file, [1, 2])
    settle(file, [2, 3, 4])
    settle(file, [number for number in range(1, 13) if number != 6])

    assert [entry.ids for entry in file.log.after(0)] == [[(1, 2)], [(3, 4)], [(5, 5), (7, 12)]]
