"""The one thread that touches a spool's file: writes what has come in one transaction, then what has come meanwhile.

While a transaction is under way everything that comes waits for the next one (group commit), so a slow disk makes
large groups and not a long queue. Whatever it finds out goes back to the event loop by a call; nothing waits here for
the loop.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from retailrocket_async._errors import SpoolError, SpoolFullError
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.futures import set_exception, set_result
from retailrocket_async._spool.file import LOG_PART, Settlement, now
from retailrocket_async._spool.place import (
    LeadLostError,
    SpoolBusyError,
    SpoolDamagedError,
    SpoolFileFullError,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Sequence

    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._spool.file import Logged, Range, SpoolFile, Usage
    from retailrocket_async._spool.process_events import SpoolReceipt

T = TypeVar("T")

_GROUP: Final = 1000
"""Events in one transaction at most: as many as the loop tells their callers of in a millisecond or two."""

_GROUP_BYTES: Final = 8 << 20

_ROW: Final = 32
"""Bytes that an event takes in the file beside its JSON."""

_APART: Final = 0.003
"""Seconds between two small transactions; one caller that awaits each of its events is alone in them, and not held."""

_LARGE: Final = 100
"""Events from which on a transaction is not small."""

_LOOK: Final = 0.05
"""Seconds between two looks whether there is room again."""

_REST: Final = 0.5
"""Seconds between two rounds of house-keeping; with `durability="interval"` what a power cut may cost."""

_MENDING: Final = 0.25
"""Seconds between two attempts to open a file that failed."""

_MEASURED: Final = 1 << 20
"""Bytes that are written between two measurements of the file."""

_DROPPED: Final = 500
"""Events that are dropped at once where the oldest make room."""


Entry: TypeAlias = "tuple[bytes, SpoolReceipt, asyncio.Future[Receipt] | None]"
"""An event on its way to the disk: its JSON, its receipt, and who waits for it; a plain tuple, as there are so many.

Where the future is cancelled the event is not written, unless it is being written by then.
"""


class WriterListener(Protocol):
    """The event loop's side: called in its thread, in the order in which things happened."""

    def committed(self, entries: Sequence[Entry], last: int, *, taken: bool) -> None:
        """Tell that events are in the file; `last` is the id of the last; `taken`: as `Reader.takes` has said."""

    def refused(self, entries: Sequence[Entry], error: SpoolError | SpoolFullError | None) -> None:
        """Tell that events are not accepted; None where they are dropped."""

    def settled(self, log: Sequence[Logged]) -> None:
        """Tell what became of events, in whichever process."""

    def missed(self) -> None:
        """Tell that the log has forgotten something that was not read yet: `catch_up` tells what is left."""

    def measured(self, usage: Usage) -> None:
        """Tell how much is in the file."""

    def failed(self, error: SpoolError) -> None:
        """Tell that the file could not be used; it is tried again."""

    def lead_lost(self, error: SpoolError) -> None:
        """Tell that another process sends in the place of this one."""

    def replaced(self) -> None:
        """Tell that another file is in the place of the one that was open: what was in that one is lost."""

    def ended(self, error: SpoolError) -> None:
        """Tell that a defect has ended the thread: nothing is written any more."""


class Reader(Protocol):
    """Who reads what is written; called in the thread."""

    def takes(self, file: SpoolFile, first: int, last: int) -> bool:
        """Whether it takes events that are being written, and need not read them; in their transaction."""
        ...

    def taken(self, last: int) -> None:
        """Tell that events it has taken are written; `last` is the id of the last."""

    def alive(self, moment: float) -> None:
        """Tell that at this moment, by the clock, no other process sent."""

    def lost(self) -> None:
        """Tell that this process does not send any more."""


class _Job:
    """Something else to do with the file, in a transaction with whatever there is to write."""

    __slots__ = ("done", "known", "run", "settlement", "term", "then", "written")

    def __init__(
        self,
        run: Callable[[SpoolFile], Any],
        done: asyncio.Future[Any] | None = None,
        then: Callable[[Any], None] | None = None,
        *,
        term: int | None = None,
        settlement: Settlement | None = None,
    ) -> None:
        self.run = run
        self.done = done
        self.then = then
        # Done while this process leads for the time of this number; None for always.
        self.term = term
        self.settlement = settlement
        # Whether it is in the file, and whether the log has told it to the loop.
        self.written = self.known = False


class SpoolWriter:
    """Owns the thread; see the module's text.

    Args:
        file: what it writes to; used by the thread alone from now on.
        listener: is notified of what was written, refused and settled.
        loop: where that is called.
        clock: returns the time in seconds; called in the thread.
        overflow: what a full spool does; see `Buffer.overflow`.
        max_bytes: bound of the file.
        min_free: bytes that stay free on its file system.
        patience: seconds for which an event waits for room, or for a file that can be used.
        flushes: whether commits leave the flushing to a check-point twice a second.
        overflowed: what became of events that made room, as JSON; given their name.

    Attributes:
        full: whether there was no room at the last look.
        waiting: events on their way to the disk.
        reader: who reads what is written; None for nobody.
        term: how often this process has stopped to lead, as the loop knows.
    """

    def __init__(  # noqa: PLR0913 - what it has to keep
        self,
        file: SpoolFile,
        listener: WriterListener,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        overflow: Overflow,
        max_bytes: int,
        min_free: int,
        patience: float,
        flushes: bool,
        overflowed: Callable[[str], str],
    ) -> None:
        self._file = file
        self._listener = listener
        self._loop = loop
        self._clock = clock
        self._overflow = overflow
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._patience = patience
        self._flushes = flushes
        self._overflowed = overflowed
        self._queue: queue.SimpleQueue[Entry | _Job | None] = queue.SimpleQueue()
        # What the thread has taken and not finished.
        self._entries: list[Entry] = []
        self._came_at: list[float] = []
        self._jobs: list[_Job] = []
        self._used = self._written = 0
        self._seq: int | None = None
        # What may be in the file though its transaction raised: the entries, the last id, and the time they got.
        self._unsure: tuple[list[Entry], int, float] | None = None
        self._generation: int = 0
        self._term: int = 0
        self.term: int = 0
        self._settling: deque[_Job] = deque()
        self._logged: list[_Job] = []
        self._beats_at = self._opening_took = 0.0
        self._why = _closed()
        self._acknowledged = threading.Event()
        self._dirty = False
        self._tight = False
        self._last_group = 0
        self._wrote_at = 0.0
        self._open = False
        self._opens_at = 0.0
        self._stopping = False
        self._ends_at = self._measures_at = 0.0
        self._stopped: asyncio.Future[None] = loop.create_future()
        self.full = False
        self.waiting = 0
        self.reader: Reader | None = None
        self._thread = threading.Thread(target=self._run, name="retailrocket-spool", daemon=True)

    # --- the loop's side ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread.

        Raises:
            SpoolError: none can be started.
        """
        try:
            detached(self._thread.start)
        except RuntimeError:
            raise SpoolError(
                "the spool needs a thread, and none can be started: the interpreter shuts down, or the system's limit "
                "is reached"
            ) from None

    def put(self, entry: Entry) -> None:
        """Write an event as soon as may be."""
        self.waiting += 1
        self._queue.put(entry)
        if self._stopped.done():
            self._end()

    def settle(self, settlement: Settlement) -> None:
        """Write what became of events; void if this process stops to lead before that is done."""
        while self._settling and self._settling[0].known:
            self._settling.popleft()
        job = _Job(lambda file: file.settle(settlement, now()), term=self.term, settlement=settlement)
        self._settling.append(job)
        self._do(job)

    def unsettled(self) -> list[tuple[Settlement, bool]]:
        """Return what `settle` was given and the log has not told yet, and whether it is in the file; and forget it."""
        left = [(job.settlement, job.written) for job in self._settling if not job.known and job.settlement is not None]
        self._settling.clear()
        return left

    def tell(self, run: Callable[[SpoolFile], object], *, leading: bool = False) -> None:
        """Do something with the file; tried again until it is done.

        Args:
            run: what to do.
            leading: not if this process stops to lead before.
        """
        self._do(_Job(run, term=self.term if leading else None))

    def ask(self, run: Callable[[SpoolFile], T], then: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Do something with the file after all that was asked for before; return what will come of it.

        Args:
            run: what to do; in the thread, and again where the transaction fails.
            then: told what came of it, in the thread, once that is in the file.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        self._do(_Job(run, done, then))
        return done

    def _do(self, job: _Job) -> None:
        self._queue.put(job)
        if self._stopped.done():
            self._end()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the event loop, after everything that was told before; for the thread."""
        self._tell(function, *args)

    def look(self) -> None:
        """Read on in the log, where other processes write, too."""
        self.tell(_nothing)

    def catch_up(self, spans: Sequence[Range]) -> asyncio.Future[tuple[list[int], list[Logged]]]:
        """Return which ids of `spans` still wait, and what the log tells up to the same moment."""

        def run(file: SpoolFile) -> tuple[list[int], list[Logged]]:
            log: list[Logged] = []
            while more := file.log_after(log[-1].seq if log else self._seq or 0):
                log += more
            return [number for span in spans for number in file.waiting_among(*span)], log

        def read(found: tuple[list[int], list[Logged]]) -> None:
            # Not before the transaction is over: if it fails, the log is read again.
            if found[1]:
                self._seq = found[1][-1].seq

        return self.ask(run, read)

    def stop(self) -> asyncio.Future[None]:
        """Do what was asked for, close the file, and end; return what is done then."""
        self._queue.put(None)
        return self._stopped

    def _end(self) -> None:
        """Note that the thread has ended, and turn away what came too late for it."""
        if not self._stopped.done():
            self._stopped.set_result(None)
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, _Job):
                if item.done is not None:
                    set_exception(item.done, self._why)
            elif item is not None:
                self._listener.refused([item], self._why)

    @property
    def over(self) -> bool:
        """Whether the thread has ended."""
        return self._stopped.done()

    def join(self) -> None:
        """Wait for the thread, where it has said that it ends."""
        if self._stopped.done():
            self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        defect: BaseException | None = None
        try:
            while self._step():
                pass
        except BaseException as error:  # noqa: BLE001 - nobody else would learn of it, and callers would wait for ever
            defect = error
        for last in (functools.partial(self._report_end, defect), self._refuse_all, self._file.close):
            # Each of them, whatever the one before raises.
            with suppress(BaseException):
                last()
        self._tell(self._end)

    def _step(self) -> bool:
        """Do what there is to do; return whether to go on. Whatever it raises, the next step tries again."""
        failed: SpoolError | None = None
        try:
            if not self._goes_on():
                if self._open:
                    self._shrink(most=20)
                return False
            self._collect()
            if self._opened():
                self._turn()
        except BaseException as error:  # noqa: BLE001 - without this thread nothing is accepted or settled any more
            if self._stopping and not self._entries and not self._jobs:
                return False
            failed = _bare(error)
        # Out of the block, where the error's frames hold statements that would keep the file open.
        if failed is not None:
            self._recover(failed)
        return True

    def _recover(self, error: SpoolError) -> None:
        try:
            self._broken(error)
        except BaseException:  # noqa: BLE001 - as in `_step`
            self._open = False
            time.sleep(_MENDING)

    def _report_end(self, defect: BaseException | None) -> None:
        """Have the loop stop sending before this process gives its place to another one."""
        if defect is None:
            return
        self._why = SpoolError(
            f"a defect ({type(defect).__name__}) has ended the spool's thread: restart the process; what was accepted"
            " is in the spool. Please report this"
        )
        self._tell(self._tell_ended)
        while not self._acknowledged.wait(_REST) and not self._loop.is_closed():
            pass

    def _tell_ended(self) -> None:
        try:
            self._listener.ended(self._why)
        finally:
            self._acknowledged.set()

    def _refuse_all(self) -> None:
        self._refuse(len(self._entries), self._why)
        self._fail_jobs(self._why)

    def _goes_on(self) -> bool:
        if not self._stopping:
            return True
        # On a disk that stays full the rest cannot be written: the events are in the file still, or were refused.
        return bool(self._entries or self._jobs) and self._clock() < self._ends_at

    def _collect(self) -> None:
        """Wait for something to do, and take what there is, up to a group."""
        waits = self._entries or self._jobs
        try:
            self._take(self._queue.get(timeout=_LOOK if waits else _REST))
            # What is taken is noted first: anything may raise while more is waited for.
            self._let_more_come()
            size = _size(self._entries)
            while len(self._entries) < _GROUP and size < _GROUP_BYTES:
                size += self._take(self._queue.get_nowait())
        except queue.Empty:
            pass
        finally:
            self._came_at += [self._clock()] * (len(self._entries) - len(self._came_at))

    def _take(self, item: Entry | _Job | None) -> int:
        """Note what came from the queue; return its bytes if it is an event."""
        if type(item) is tuple:
            self._entries.append(item)
            return len(item[0])
        if isinstance(item, _Job):
            self._jobs.append(item)
        else:
            self._stopping = True
            self._ends_at = self._clock() + self._patience
        return 0

    def _let_more_come(self) -> None:
        """Wait a moment where many small groups follow one another: each costs as much as a hundred events."""
        if 1 < self._last_group < _LARGE and (wait := self._wrote_at + _APART - self._clock()) > 0.0:
            time.sleep(wait)
        self._wrote_at = self._clock()

    def _opened(self) -> bool:
        if self._open:
            return True
        began = self._clock()
        if began < self._opens_at:
            return False
        try:
            self._file.open()
            self._used = self._file.bytes_used()
            if self._file.generation != self._generation:
                if self._generation:
                    # Ids of the old file mean other events in this one, or none.
                    self._seq = self._unsure = None
                    self._lose()
                    self._tell(self._listener.replaced)
                self._generation = self._file.generation
            if self._seq is None:
                self._seq = self._file.last_logged()
            self._open = True
        finally:
            self._opening_took = self._clock() - began
        return True

    def _turn(self) -> None:
        """Write what there is to write; where nothing is, keep house."""
        self._forget_withdrawn()
        idle = not self._entries and not self._jobs
        try:
            self._beat()
            if self._unsure is not None:
                self._resolve(*self._unsure)
            if not idle:
                self._write()
            if idle or self._clock() >= self._measures_at:
                self._keep_house()
        except LeadLostError as error:
            self._lose()
            self._tell(self._listener.lead_lost, _bare(error))
        except SpoolFileFullError:
            self._tight = True
            self._file.reuse()
            self._is_full()

    def _beat(self) -> None:
        """Show other processes that this one sends, and the reader that no other one does."""
        began = self._clock()
        if self.reader is not None and self._file.leads and began >= self._beats_at:
            self._file.beat()
            self._beats_at = began + _REST
            self.reader.alive(began)

    def _lose(self) -> None:
        """Stop to lead: what was to be written for that is void."""
        self._term += 1
        if self.reader is not None:
            self.reader.lost()
        self._file.stop_leading()

    @contextmanager
    def _transaction(self) -> Generator[None]:
        try:
            with self._file.transaction():
                yield
        except BaseException:
            if not self._file.unsure:
                self._unsure = None
            raise
        self._unsure = None

    def _resolve(self, entries: list[Entry], last: int, at: float) -> None:
        """Find out whether a transaction that raised is in the file: its events must be there once."""
        waiting = {id(entry) for entry in self._entries}
        numbered = list(enumerate(entries, last - len(entries) + 1))
        refused = [number for number, entry in numbered if id(entry) not in waiting]
        with self._file.transaction():
            held = self._file.holds(last, len(entries), at)
            if held and refused:
                self._file.withdraw(refused)
        self._unsure = None
        if not held:
            return
        accepted = [(number, entry) for number, entry in numbered if id(entry) in waiting]
        known = {id(entry) for _, entry in accepted}
        stay = [number for number, entry in enumerate(self._entries) if id(entry) not in known]
        self._entries, self._came_at = [self._entries[n] for n in stay], [self._came_at[n] for n in stay]
        for _, run in itertools.groupby(enumerate(accepted), lambda each: each[1][0] - each[0]):
            part = [each for _, each in run]
            self._committed([entry for _, entry in part], part[-1][0], taken=False)

    def _write(self) -> None:
        self._jobs = [job for job in self._jobs if job.term in (None, self._term)]
        fitting = self._fitting()
        if not fitting and not self._jobs:
            if self._entries and (self._overflow != "drop_oldest" or not self._make_room()):
                self._is_full()
            return
        # What does not fit waits for what the jobs may remove.
        # On a disk without room one small thing after the other may still be done.
        entries, jobs = self._entries[:fitting], self._jobs[:1] if self._tight else list(self._jobs)
        self._last_group = fitting + len(jobs)
        with self._transaction():
            # First what may read: it must not come upon events that the reader is about to take.
            results = [job.run(self._file) for job in jobs]
            last, taken = self._append(entries)
        for job in jobs:
            job.written = True
        del self._entries[:fitting], self._came_at[:fitting], self._jobs[: len(jobs)]
        self._dirty = True
        self._committed(entries, last, taken=taken)
        self._tight = self._tight and bool(self._jobs)
        for job, result in zip(jobs, results, strict=True):
            if job.then is not None:
                job.then(result)
            if job.done is not None:
                self._tell(set_result, job.done, result)
        self._logged += jobs
        if jobs:
            self._read_log()

    def _append(self, entries: list[Entry]) -> tuple[int, bool]:
        """Add events; return the id of the last, and whether the reader takes them."""
        if not entries:
            return 0, False
        at = now()
        last = self._file.append([entry[0] for entry in entries], at)
        self._unsure = (entries, last, at)
        return last, self.reader is not None and self.reader.takes(self._file, last - len(entries) + 1, last)

    def _make_room(self) -> bool:
        """Write events in the place of the oldest that are not on their way; return whether there were any."""
        entries = self._entries
        with self._transaction():
            oldest = self._file.oldest(self._file.read_to(), max(_DROPPED, 2 * len(entries)))
            for name, ids in oldest:
                spans = [(number, number) for number in ids]
                self._file.settle(Settlement(spans, self._overflowed(name)), now())
            last, taken = self._append(entries) if oldest else (0, False)
        if not oldest:
            return False
        self._entries, self._came_at = [], []
        self._committed(entries, last, taken=taken)
        self._used = self._file.bytes_used()
        self._read_log()
        return True

    def _committed(self, entries: list[Entry], last: int, *, taken: bool) -> None:
        if not entries:
            return
        if taken and self.reader is not None:
            self.reader.taken(last)
        self.full = False
        self._written += _size(entries)
        self._tell(functools.partial(self._listener.committed, taken=taken), entries, last)

    def _fitting(self) -> int:
        """Return for how many of the entries there is room."""
        if not self._entries:
            return 0
        if self._written > _MEASURED or self.full:
            self._used, self._written = self._file.bytes_used(), 0
        room = min(self._max_bytes - self._used - self._written, self._file.bytes_free() - self._min_free)
        if _size(self._entries) <= room:
            return len(self._entries)
        return sum(total <= room for total in itertools.accumulate(_size([entry]) for entry in self._entries))

    def _is_full(self) -> None:
        """Let events wait, refuse or drop them, as the user wants it."""
        self.full = True
        if self._overflow == "raise":
            self._refuse(len(self._entries), _full())
        elif self._overflow == "wait":
            self._refuse_late(_full())
        else:
            self._refuse(len(self._entries), None)

    def _broken(self, error: SpoolError) -> None:
        """Open the file anew; events wait for it as they wait for room."""
        ever_open = self._generation > 0
        if not isinstance(error, SpoolBusyError):
            self._open = False
            # A large file that is damaged takes long to open: others need the disk, too.
            self._opens_at = self._clock() + max(_MENDING, 4 * self._opening_took)
        self._tell(self._listener.failed, error)
        if ever_open and not isinstance(error, SpoolDamagedError):
            self._refuse_late(error)
        else:
            self._refuse(len(self._entries), error)
        self._fail_jobs(error, keep=ever_open)
        if not self._open:
            with suppress(SpoolError):
                self._file.disconnect()

    def _refuse_late(self, error: SpoolError | SpoolFullError) -> None:
        late = self._clock() - self._patience
        # They are in the order in which they came.
        self._refuse(sum(came_at <= late for came_at in self._came_at), error)

    def _refuse(self, count: int, error: SpoolError | SpoolFullError | None) -> None:
        """Refuse the first entries, or drop them."""
        unsure = () if self._unsure is None else self._unsure[0]
        known = set(map(id, unsure))
        certain = [entry for entry in self._entries[:count] if id(entry) not in known]
        if certain:
            self._tell(self._listener.refused, certain, error)
        if len(certain) < count:
            # Taken back by `_resolve`, if the file can be read again.
            maybe = SpoolError(f"{error}; the event may be in the spool all the same")
            self._tell(self._listener.refused, [entry for entry in self._entries[:count] if id(entry) in known], maybe)
        del self._entries[:count], self._came_at[:count]

    def _forget_withdrawn(self) -> None:
        gone = {number for number, (_, _, admitted) in enumerate(self._entries) if admitted and admitted.cancelled()}
        if gone:
            self._tell(self._listener.refused, [self._entries[number] for number in gone], None)
            stay = [number for number in range(len(self._entries)) if number not in gone]
            self._entries, self._came_at = [self._entries[n] for n in stay], [self._came_at[n] for n in stay]

    def _fail_jobs(self, error: SpoolError, *, keep: bool = False) -> None:
        """Fail what somebody waits for; keep what has to be written in the end."""
        failed = [job for job in self._jobs if job.done is not None]
        self._jobs = [job for job in self._jobs if job.done is None] if keep else []
        for job in failed:
            if job.done is not None:
                self._tell(set_exception, job.done, error)

    def _keep_house(self) -> None:
        self._measures_at = self._clock() + _REST
        self._file.check_place()
        if self._flushes and self._dirty:
            self._file.checkpoint()
        self._dirty = False
        self._shrink(most=4)
        self._read_log()
        self._tell(self._listener.measured, self._file.usage())

    def _shrink(self, most: int) -> None:
        with suppress(SpoolFileFullError):
            for _ in range(most):
                if not self._queue.empty() or not self._file.shrink():
                    return

    def _read_log(self) -> None:
        while log := self._file.log_after(self._seq or 0):
            # Numbers follow one another. Entries are forgotten after ten minutes.
            forgotten = log[0].seq - (self._seq or 0) - 1
            self._seq = log[-1].seq
            self._tell(self._listener.settled, log)
            if forgotten or not all(entry.ids for entry in log):
                self._tell(self._listener.missed)
            if len(log) < LOG_PART:
                # At once: whatever fails from here on, nothing is counted twice.
                self._know()
        self._know()

    def _know(self) -> None:
        for job in self._logged:
            job.known = True
        self._logged = []

    def _tell(self, call: Callable[..., object], *args: object) -> None:
        # A closed loop has nobody left to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)


def _size(entries: Sequence[Entry]) -> int:
    """Return the bytes that events take in the file, more or less."""
    return sum([len(entry[0]) for entry in entries]) + _ROW * len(entries)


def _nothing(_: SpoolFile) -> None:
    """Do nothing; what follows every job is what is wanted."""


def _full() -> SpoolFullError:
    return SpoolFullError(
        "the spool is full: raise SqliteSpool.max_bytes, make room on its disk, or choose another Buffer.overflow"
    )


def _bare(error: BaseException) -> SpoolError:
    """Return an error for callers to keep: without the frames that it came through, and what they hold."""
    if not isinstance(error, SpoolError):
        return SpoolError(f"the spool cannot be used: {type(error).__name__}: {error}".rstrip(": "))
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _closed() -> SpoolError:
    return SpoolError("the spool was closed")
