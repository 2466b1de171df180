"""A spool: events on disk before `track` returns, delivered by whichever process of the host sends."""

import json
import math
import os
import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import attrs

from retailrocket_async._errors import ConfigurationError, SpoolError
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Outcome, Rejected
from retailrocket_async._spool.file import Durability, SpoolFile, now
from retailrocket_async._spool.place import SpoolDamagedError
from retailrocket_async._spool.salvage import is_envelope, salvaged

_DAY: Final = 86_400.0

_OLDEST_SQLITE: Final = (3, 38)
"""The first version that has JSON functions in every build."""

_LEAST_FREE: Final = 16 << 20
"""As much as SQLite's log of transactions may hold that is not in the file yet."""

_PART: Final = 1000
"""Events that are read at once where people look at them."""

_PART_BYTES: Final = 8 << 20

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
        # The current directory was removed.
        raise ConfigurationError(
            f"SqliteSpool.path is relative to a directory that is gone: {error.strerror}"
        ) from None


@attrs.frozen(kw_only=True)
class SpooledEvent:
    """An event that waits in a spool.

    Attributes:
        id: its number in the spool, rising.
        envelope: its JSON: one line that ``retailrocket-async send`` takes.
        tracked_at: when it came, in seconds since the epoch.
    """

    id: int
    envelope: bytes = attrs.field(repr=False)
    tracked_at: float


@attrs.frozen(kw_only=True)
class DeadEvent:
    """An event that was not delivered and will not be, unless somebody replays it.

    Attributes:
        id: its number in the spool.
        envelope: its JSON, as in `SpooledEvent`.
        tracked_at: when it came, in seconds since the epoch.
        died_at: when it was given up, in seconds since the epoch.
        reason: why, e.g. ``"rejected: HTTP 400"`` or ``"expired"``.
        maybe_recorded: whether the API may have recorded it all the same.
    """

    id: int
    envelope: bytes = attrs.field(repr=False)
    tracked_at: float
    died_at: float
    reason: str
    maybe_recorded: bool


@attrs.frozen(kw_only=True)
class SpoolContents:
    """What is in a spool.

    Attributes:
        partner_id: the shop that it belongs to; None where no client has used it yet.
        events: events that wait.
        size: bytes in use.
        oldest_at: when the oldest of them came, in seconds since the epoch; None where none waits.
        dead: dead letters by reason.
        sending: whether a process is there that sends.
    """

    partner_id: str | None
    events: int
    size: int
    oldest_at: float | None
    dead: Mapping[str, int]
    sending: bool


@attrs.frozen
class SqliteSpool:
    """Where events wait on disk: a directory on a local file system, shared by the processes of one host.

    `track` returns once its event is in the file. From then on it survives a crash of the process, of the host and,
    with ``durability="commit"``, a power cut; it leaves the file when it has its outcome, and what is refused becomes a
    dead letter. Any number of processes may share a spool; one of them sends at a time, so the host keeps one limit.
    A spool belongs to one shop. The key is never in it. Needs Linux, macOS or another system with ``flock``.

    Args:
        path: the directory; it is made, for this user alone, where it is not there. No network file system.
        durability: ``"commit"`` (default): flushed to the disk before `track` returns. ``"interval"``: flushed every
            half second, so that a power cut, or the end of a virtual machine, may cost the last moment's events; a
            crash of the process costs none.
        max_bytes: bytes that the file may hold, 1 MiB or more; default 1 GiB, some four million events.
        min_free: bytes of its file system that are left free, 16 MiB or more: removing events takes room, too; default
            64 MiB.
        max_age: seconds after which an event becomes a dead letter instead of being sent, above 0; default 7 days.
        full_timeout: seconds for which `track` waits where the spool is full, or its file cannot be used, before it
            raises, 0 or more; default 5. What a full spool does otherwise, `Buffer.overflow` says: ``"wait"`` (this
            one), ``"raise"``, ``"drop_newest"`` or ``"drop_oldest"``.
        max_dead: dead letters kept, 0 or more; default 100,000; the oldest give way.
        dead_age: seconds for which they are kept, above 0; default 30 days.

    Raises:
        ConfigurationError: a value outside its range, or a system without what it needs.
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

    # --- for people; every method blocks, so call them in a thread where a loop runs ----------------------------------

    def stat(self) -> SpoolContents:
        """Return what is in the spool; goes through all of it, which takes a second for millions of events.

        Raises:
            SpoolError: there is no spool, or it cannot be used.
        """
        with self._opened() as file:
            waiting, dead = file.counts()
            usage = file.usage()
            return SpoolContents(
                partner_id=file.shop(),
                events=waiting,
                size=usage.bytes,
                oldest_at=usage.oldest_at,
                dead=dead,
                sending=not file.lead(),
            )

    def events(self) -> Iterator[SpooledEvent]:
        """Yield the events that wait, oldest first.

        Raises:
            SpoolError: as `stat`.
        """
        return (event for event in self._events() if event is not None)

    def _events(self) -> Iterator[SpooledEvent | None]:
        """Yield the events that wait, and None for each that is damaged."""
        with self._opened() as file:
            after = 0
            while True:
                rows = file.read(after, _PART, _PART_BYTES)
                yield from (None for _ in file.damaged)
                if not rows.ids:
                    return
                after = rows.ids[-1]
                for number, at, body in zip(*rows, strict=True):
                    yield SpooledEvent(id=number, envelope=body, tracked_at=at)

    def dead(self) -> Iterator[DeadEvent]:
        """Yield the dead letters, oldest event first.

        Raises:
            SpoolError: as `stat`.
        """
        with self._opened() as file:
            after = 0
            while (rows := file.read_dead(after, _PART)).ids:
                after = rows.ids[-1]
                for number, at, died_at, reason, maybe, body in zip(*rows, strict=True):
                    yield DeadEvent(
                        id=number, envelope=body, tracked_at=at, died_at=died_at, reason=reason, maybe_recorded=maybe
                    )

    def export(self, *, dead: bool = False) -> Iterator[bytes | None]:
        """Yield the JSON of each event that waits, oldest first, and None for one that is damaged.

        Where SQLite cannot read the file any more its pages are read directly, without a lock and without writing:
        stop the processes that use it before. Events are then in the order of their pages.

        Args:
            dead: the dead letters, not the events that wait; default False.

        Raises:
            SpoolError: there is no spool, or its files cannot be read at all.
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
        """Whether SQLite can read all of it: half way through it would be too late to begin anew."""
        try:
            for _ in self.dead() if dead else self._events():
                pass
        except SpoolDamagedError:
            return False
        return True

    def replay_dead(self, most: int | None = None) -> int:
        """Let dead letters wait again, those that died first; return how many. Whoever sends next sends them, too.

        Args:
            most: how many at most; default None, all.

        Raises:
            SpoolError: as `stat`.
        """
        with self._opened() as file, file.transaction():
            return file.replay_dead(1 << 40 if most is None else most, now())

    def purge(self) -> int:
        """Remove the events that wait, for good; return how many. Those that are being sent stay.

        Raises:
            SpoolError: as `stat`.
        """
        with self._opened() as file, file.transaction():
            after = 0 if file.lead() else file.read_to()
            return file.purge(after, lambda name: encode_outcome(Dropped(reason="purged"), name), now())

    def purge_dead(self) -> int:
        """Remove the dead letters for good; return how many.

        Raises:
            SpoolError: as `stat`.
        """
        with self._opened() as file, file.transaction():
            return file.purge_dead()

    @contextmanager
    def _opened(self) -> Generator[SpoolFile]:
        file = self.file()
        file.open(create=False)
        try:
            yield file
        finally:
            file.close()

    def file(self, shop: str | None = None) -> SpoolFile:
        """Return a connection to it that is not open yet; for this package."""
        return SpoolFile(
            self.path,
            durability=self.durability,
            max_bytes=self.max_bytes,
            most_dead=self.max_dead,
            dead_age=self.dead_age,
            shop=shop,
            # At least a moment: another process that writes is no failure.
            patience=max(1.0, self.full_timeout),
        )


_KINDS: Final = {kind.__name__: kind for kind in (Delivered, Rejected, Abandoned, Dropped)}


def encode_outcome(outcome: Outcome, name: str = "") -> str:
    """Return an outcome as the log holds it; `name` is that of the events, where they were dropped."""
    return json.dumps([type(outcome).__name__, attrs.asdict(outcome), name])


def decode_outcome(text: str) -> tuple[Outcome, str]:
    """Return what `told` has told."""
    kind, fields, name = json.loads(text)
    values: dict[str, Any] = fields
    return _KINDS[kind](**values), name
