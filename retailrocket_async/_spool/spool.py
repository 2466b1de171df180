"""The settings of a spool, and methods that inspect and repair a spool."""

import math
import os
import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias, get_args

import attrs

from retailrocket_async._errors import ConfigurationError, SpoolError
from retailrocket_async._outcome import Dropped
from retailrocket_async._spool.failures import SpoolDamagedError
from retailrocket_async._spool.file import SpoolFile, now
from retailrocket_async._spool.outcome_codec import encode_outcome
from retailrocket_async._spool.salvage import is_envelope, salvaged
from retailrocket_async._spool.schema import Durability

_DAY: Final = 86_400.0

_OLDEST_SQLITE: Final = (3, 38)
"""The first version of SQLite that has JSON functions in every build."""

_LEAST_FREE: Final = 16 << 20
"""Least value of `min_free`: the bytes that SQLite's write-ahead log may use in addition to the database, see
`journal_size_limit` in `schema`."""

_PART: Final = 1000
"""Largest number of events that the listing methods read at a time."""

_PART_BYTES: Final = 8 << 20
"""Largest number of bytes of JSON that the listing methods read at a time."""

PathLike: TypeAlias = "str | os.PathLike[str]"


def _directory(path: PathLike) -> Path:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"SqliteSpool needs the path of a directory, as text, not {path!r}")
    if any(letter < " " or letter == "\x7f" for letter in text):
        raise ConfigurationError(f"SqliteSpool needs a path without control characters, not {path!r}: strip() it")
    try:
        return Path(text).absolute()
    except OSError as error:
        # `absolute` fails if the current directory was removed.
        raise ConfigurationError(
            f"SqliteSpool.path is relative to a directory that is gone: {error.strerror}"
        ) from None


@attrs.frozen(kw_only=True)
class SpooledEvent:
    """An event that waits in a spool.

    Attributes:
        id: number of the event in the spool; later events have higher numbers.
        envelope: JSON of the event, as one line that ``retailrocket-async send`` reads.
        tracked_at: when the event was tracked, in seconds since the epoch.
    """

    id: int
    envelope: bytes = attrs.field(repr=False)
    tracked_at: float


@attrs.frozen(kw_only=True)
class DeadEvent:
    """A dead letter: an event that was not delivered, and is sent again only if it is replayed.

    Attributes:
        id: number of the event in the spool.
        envelope: JSON of the event, as in `SpooledEvent`.
        tracked_at: when the event was tracked, in seconds since the epoch.
        died_at: when the event became a dead letter, in seconds since the epoch.
        reason: why the event became a dead letter, e.g. ``"rejected: HTTP 400"`` or ``"expired"``.
        maybe_recorded: whether the API may nevertheless have recorded the event.
    """

    id: int
    envelope: bytes = attrs.field(repr=False)
    tracked_at: float
    died_at: float
    reason: str
    maybe_recorded: bool


@attrs.frozen(kw_only=True)
class SpoolContents:
    """A summary of the content of a spool.

    Attributes:
        partner_id: the shop that the spool belongs to; None if no client has used the spool yet.
        events: number of waiting events.
        size: number of bytes in use.
        oldest_at: when the oldest waiting event was tracked, in seconds since the epoch; None if no event waits.
        dead: number of dead letters for each reason.
        sending: whether a process sends the events at present.
    """

    partner_id: str | None
    events: int
    size: int
    oldest_at: float | None
    dead: Mapping[str, int]
    sending: bool


@attrs.frozen
class SqliteSpool:
    """Stores events on disk until they are delivered, in a directory that the processes of one host may share.

    `track` returns when its event is in the file. From then on the event survives a crash of the process and, with
    ``durability="commit"``, a crash of the host and a power cut. An event is removed from the file when the event
    has its outcome; an undelivered event becomes a dead letter. Any number of processes may share a spool. Only one of
    these processes sends at a time, so all processes together keep to one request limit. A spool belongs to one shop.
    The API key is never written to the spool. A spool needs Linux, macOS or another system with ``flock``.

    Args:
        path: the directory, on a local file system. If the directory does not exist, a directory is created that only
            this user can read.
        durability: ``"commit"`` (default): each event is flushed to the disk before `track` returns. ``"interval"``:
            events are flushed every half second, so a power cut, or the end of a virtual machine, may lose the events
            of the last half second; a crash of the process loses no event.
        max_bytes: largest size of the file in bytes, 1 MiB or more; default 1 GiB, enough for some four million events.
        min_free: bytes of the file system that the spool leaves free, 16 MiB or more, because removing events needs
            space, too; default 64 MiB.
        max_age: seconds after which an event becomes a dead letter instead of being sent, above 0; default 7 days.
        full_timeout: seconds that `track` waits before it raises an error if the spool is full or its file cannot be
            used, 0 or more; default 5. If the spool is full, `track` waits with ``Buffer(overflow="wait")`` only. With
            ``"raise"``, `track` raises the error at once; with ``"drop_newest"`` and ``"drop_oldest"``, events are
            dropped at once.
        max_dead: largest number of dead letters, 0 or more; default 100,000. Above this number, the oldest are removed.
        dead_age: seconds for which dead letters are kept, above 0; default 30 days.

    Raises:
        ConfigurationError: a value is outside its range, or the system lacks something that a spool needs.
    """

    path: Path = attrs.field(converter=_directory)
    durability: Durability = attrs.field(default="commit", kw_only=True)
    max_bytes: int = attrs.field(default=1 << 30, kw_only=True)
    min_free: int = attrs.field(default=64 << 20, kw_only=True)
    max_age: float = attrs.field(default=7 * _DAY, kw_only=True)
    full_timeout: float = attrs.field(default=5.0, kw_only=True)
    max_dead: int = attrs.field(default=100_000, kw_only=True)
    dead_age: float = attrs.field(default=30 * _DAY, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.durability not in get_args(Durability):
            allowed = ", ".join(map(repr, get_args(Durability)))
            raise ConfigurationError(f"SqliteSpool.durability must be one of {allowed}, not {self.durability!r}")
        for name, least in (("max_bytes", 1 << 20), ("min_free", _LEAST_FREE), ("max_dead", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigurationError(f"SqliteSpool.{name} must be an int of {least} or more, not {value!r}")
        for name in ("max_age", "full_timeout", "dead_age"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf or (value == 0 and name != "full_timeout"):
                bound = "0 or more" if name == "full_timeout" else "above 0"
                raise ConfigurationError(f"SqliteSpool.{name} must be a number of seconds {bound}, not {value!r}")
        if not hasattr(os, "register_at_fork"):
            raise ConfigurationError("SqliteSpool needs a system with flock and fork: Windows has neither")
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise ConfigurationError(f"SqliteSpool needs SQLite 3.38 or newer, not {sqlite3.sqlite_version}")

    # --- inspection; every method blocks, so call it in a thread if an event loop runs --------------------------------

    def stat(self) -> SpoolContents:
        """Return a summary of the spool. Every event is counted; for millions of events this takes a second.

        Raises:
            SpoolError: there is no spool, or the spool cannot be used.
        """
        with self._opened() as file:
            waiting, dead = file.events.count(), file.dead.counts()
            usage = file.usage()
            return SpoolContents(
                partner_id=file.shop(),
                events=waiting,
                size=usage.bytes,
                oldest_at=usage.oldest_at,
                dead=dead,
                sending=not file.lease.acquire(),
            )

    def events(self) -> Iterator[SpooledEvent]:
        """Yield the waiting events, oldest first.

        Raises:
            SpoolError: there is no spool, or the spool cannot be used.
        """
        return (event for event in self._events() if event is not None)

    def _events(self) -> Iterator[SpooledEvent | None]:
        """Yield the waiting events, oldest first, and None for each damaged event."""
        with self._opened() as file:
            after = 0
            while True:
                rows = file.events.read(after, _PART, _PART_BYTES)
                yield from (None for _ in file.events.damaged)
                if not rows.ids:
                    return
                after = rows.ids[-1]
                for number, at, body in zip(*rows, strict=True):
                    yield SpooledEvent(id=number, envelope=body, tracked_at=at)

    def dead(self) -> Iterator[DeadEvent]:
        """Yield the dead letters, oldest event first.

        Raises:
            SpoolError: there is no spool, or the spool cannot be used.
        """
        with self._opened() as file:
            after = 0
            while (rows := file.dead.read(after, _PART)).ids:
                after = rows.ids[-1]
                for number, at, died_at, reason, maybe, body in zip(*rows, strict=True):
                    yield DeadEvent(
                        id=number, envelope=body, tracked_at=at, died_at=died_at, reason=reason, maybe_recorded=maybe
                    )

    def export(self, *, dead: bool = False) -> Iterator[bytes | None]:
        """Yield the JSON of each waiting event, oldest first, and None for each damaged event.

        If the file is damaged and SQLite cannot read the file any more, its pages are read directly, without
        a lock and without writing. In this case the events are yielded in the order of the pages. Stop the processes
        that use the spool before you call this method.

        Args:
            dead: whether to yield the dead letters instead of the waiting events; default False.

        Raises:
            SpoolError: there is no spool, or the files of the spool cannot be read at all.
        """
        if self._is_readable(dead=dead):
            for event in self.dead() if dead else self._events():
                yield event.envelope if event is not None and is_envelope(event.envelope) else None
            return
        try:
            for row in salvaged(self.path):
                if row.dead is dead:
                    yield row.envelope
        except OSError as error:
            raise SpoolError(f"the spool in {self.path} cannot be read: {error.strerror}") from None

    def _is_readable(self, *, dead: bool) -> bool:
        """Return whether SQLite can read all events.

        `export` must know this before `export` yields the first event. If SQLite failed in the middle, `export` could
        not read the pages instead, because the events that were yielded before would be yielded again.
        """
        try:
            for _ in self.dead() if dead else self._events():
                pass
        except SpoolDamagedError:
            return False
        return True

    def replay_dead(self, most: int | None = None) -> int:
        """Turn dead letters back into waiting events, the oldest dead letters first; return the number of these events.

        Args:
            most: largest number of dead letters to replay; default None, for all.

        Raises:
            SpoolError: there is no spool, or the spool cannot be used.
        """
        with self._opened() as file, file.transaction():
            return file.dead.replay(1 << 40 if most is None else most, now())

    def purge(self) -> int:
        """Delete the waiting events; return the number of deleted events.

        If another process sends at present, the events that the other process has already read are not deleted.

        Raises:
            SpoolError: there is no spool, or the spool cannot be used.
        """
        with self._opened() as file, file.transaction():
            after = 0 if file.lease.acquire() else file.events.read_to()
            return file.purge(after, lambda name: encode_outcome(Dropped(reason="purged"), name), now())

    def purge_dead(self) -> int:
        """Delete the dead letters; return the number of deleted dead letters.

        Raises:
            SpoolError: there is no spool, or the spool cannot be used.
        """
        with self._opened() as file, file.transaction():
            return file.dead.purge()

    @contextmanager
    def _opened(self) -> Generator[SpoolFile]:
        file = self.file()
        file.open(create=False)
        try:
            yield file
        finally:
            file.close()

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return the object that reads and writes the spool's file. Use this method only inside this package.

        The file is not open yet.
        """
        return SpoolFile(
            self.path,
            durability=self.durability,
            max_bytes=self.max_bytes,
            most_dead=self.max_dead,
            dead_age=self.dead_age,
            shop=shop,
            # Wait at least one second for the write lock, even if `full_timeout` is 0: another process holds the lock
            # during each of its transactions, and this must not count as a failure.
            patience=max(1.0, self.full_timeout),
        )
