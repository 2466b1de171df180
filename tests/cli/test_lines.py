"""Tests of the parser of input lines: envelopes (JSON), rows of the clickstream data set (CSV), and bad lines."""

from __future__ import annotations

import gzip
import io
import itertools
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import AddToBasket, Codec, CustomEvent, Event, EventValidationError, Order, View
from retailrocket_async.cli._clickstream import HEADER, Clickstream
from retailrocket_async.cli._lines import MAX_LINE, BadLine, Lines
from retailrocket_async.cli._reading import Chunk, Reader, Source, total_size
from tests.support.strategies import PROPERTY

if TYPE_CHECKING:
    from collections.abc import Generator

AT = datetime(2015, 5, 3, 3, 2, 0, 563000, tzinfo=UTC)
VIEW = b'{"view":{"sessionExternalId":"a1","productId":1,"timestamp":"2025-01-31T09:30:00+00:00"}}'
VIEWED = Codec().decode(VIEW)
TOO_LONG = "is longer than 1,048,576 bytes, and is not written to the rejects"


def found_in(*pieces: bytes, allow_custom: bool = False) -> list[Event | BadLine]:
    """Return the events and bad lines of an input that arrives in these pieces; a piece may end within a line."""
    lines = Lines("in", Clickstream(9.9, 2), allow_custom=allow_custom)
    return [*(found for piece in pieces for found in lines.feed(piece)), *lines.finish()]


def complaints(*pieces: bytes) -> list[str]:
    """Return the messages of the bad lines of an input."""
    return [str(found) for found in found_in(*pieces) if isinstance(found, BadLine)]


def row(text: str) -> list[Event | BadLine]:
    """Return the event or bad line that one row of the clickstream becomes."""
    return found_in(HEADER + b"\n" + text.encode(errors="surrogateescape"))


def test_envelope() -> None:
    """If a line is JSON, it becomes the event that its envelope describes."""
    assert [VIEWED] == found_in(VIEW + b"\n")


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("1430622120563,683727,view,422926,", View(session_external_id="683727", product_id=422926, timestamp=AT)),
        ("1430622120563,7,addtocart,1,", AddToBasket(session_external_id="7", product_id=1, timestamp=AT)),
        (
            "1430622120563,7,transaction,1,4000",
            Order(session_external_id="7", product_id=1, quantity=2, price=9.9, transaction="4000", timestamp=AT),
        ),
        ('"1430622120563","7","view","1",""', View(session_external_id="7", product_id=1, timestamp=AT)),
    ],
)
def test_row(text: str, event: Event) -> None:
    """A row becomes the event that the row names, with the row's time, which is in milliseconds, UTC."""
    assert [event] == row(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1430622120563,7,view,1\udcff,", "row must be UTF-8: byte 23 is not"),
        ("1430622120563,7,view,1", "row must have 5 columns (timestamp,visitorid,event,itemid,transactionid), not 4"),
        ("x,7,view,1,", "row.timestamp must be a whole number (got 'x')"),
        ("-1,7,view,1,", "row.timestamp must be a whole number (got '-1')"),
        ("٣,7,view,1,", "row.timestamp must be a whole number (got '٣')"),
        ("1_000,7,view,1,", "row.timestamp must be a whole number (got '1_000')"),
        ("9999999999999999999,7,view,1,", "row.timestamp must be milliseconds before the year 10000"),
        ("999999999999999,7,view,1,", "row.timestamp must be milliseconds before the year 10000"),
        ("1430622120563,7,view," + "1" * 5000 + ",", "row.itemid must be a whole number"),
        ("1430622120563,7,view,9999999999999999999,", "view.product_id must be an int of at most 64 bits"),
        ("1430622120563,,view,1,", "view.session_external_id must be a str of 1-50 ASCII letters and digits"),
        ("1430622120563,7,buy,1,", "row.event must be view, addtocart or transaction (got 'buy')"),
        ("1430622120563,7,transaction,1,", "order.transaction must be a str of 1-50 characters"),
        ("1430622120563,7,view,1,5", "row.transactionid belongs to a transaction, not to 'view'"),
        ("1430622120563,7,buy,1,5", "row.event must be view, addtocart or transaction (got 'buy')"),
        (f"1430622120563,7,{'x' * 100_000},1,5", "row.event must be view, addtocart or transaction (got 'xxx"),
        ('1430622120563,7,view,1,"', "row must be CSV: unexpected end of data"),
        ("1430622120563,7,vi\x00ew,1,", "row.event must be view, addtocart or transaction (got 'vi\\x00ew')"),
    ],
)
def test_bad_row(text: str, reason: str) -> None:
    """If a row breaks a rule, it becomes a bad line with the input's name, the line number and the reason."""
    [bad] = row(text)

    assert str(bad).startswith(f"in:2: {reason}")
    assert len(str(bad)) < 400


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"view":1}', "view must be an object, not int"),
        (b'{"view":{"productId":1}}', "view.session_external_id is required"),
        (b'{"vieww":{}}', "event must have one of these names"),
        (b'{"view":{"sessionExternalId":"\xff"}}', "event must be JSON"),
        (b'{"view":', "event must be JSON"),
        (VIEW + b"\x00", "event must be JSON"),
        (b"[" + VIEW + b"]", "is neither an envelope"),
        (b"\xff\xfe{\x00", "is neither an envelope"),
        (b"timestamp;visitorid;event;itemid;transactionid", "is neither an envelope"),
        (b"\x00", "is neither an envelope"),
    ],
)
def test_bad_line(line: bytes, reason: str) -> None:
    """If a line is neither blank nor a valid event or row, it is a bad line, and the next line is parsed as usual."""
    bad, good = found_in(VIEW + b"\n" + line + b"\n" + VIEW)[1:]

    assert str(bad).startswith(f"in:2: {reason}")
    assert VIEWED == good


def test_bad_line_keeps_its_bytes() -> None:
    """If a line is bad, its bytes are preserved, including the line break."""
    [bad] = found_in(b' {"x": \xff}\t\r\n')

    assert isinstance(bad, BadLine)
    assert b' {"x": \xff}\t\r\n' == bad.raw


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("first", [VIEW, HEADER + b"\n1430622120563,7,view,1,"])
def test_editors_habits(mark: bytes, end: bytes, first: bytes) -> None:
    """If the input has a byte order mark, blank lines, CR LF or no last line break, the same events are found."""
    lines = [*first.split(b"\n"), b"", b"  \t", VIEW]

    assert [Event, Event] == [Event for found in found_in(mark + end.join(lines)) if isinstance(found, Event)]
    assert [] == complaints(mark + end.join(lines))


def test_numbers_count_every_line() -> None:
    """Blank lines and headers are counted, so the line numbers are those that an editor shows."""
    assert ["in:4: "] == [message[:6] for message in complaints(b"\n" + HEADER + b"\n\nx\n")]


def test_kinds_may_be_mixed() -> None:
    """If envelopes and rows with headers are mixed in one input, all are parsed."""
    rows = HEADER + b"\n1,7,view,1,\n"

    assert ["View"] * 4 == [type(found).__name__ for found in found_in(VIEW + b"\n" + rows + VIEW + b"\n" + rows)]


def test_row_without_header() -> None:
    """If a row has no header above it, it is a bad line."""
    assert ["in:1: is neither an envelope"] == [message[:28] for message in complaints(b"1430622120563,7,view,1,")]


def test_custom_event() -> None:
    """If the event's name is unknown, the line is an event only with `allow_custom`."""
    line = b'{"wishlist":{"sessionExternalId":"a1"}}'

    assert [CustomEvent(name="wishlist", fields={"sessionExternalId": "a1"})] == found_in(line, allow_custom=True)
    assert 1 == len(complaints(line))


def test_too_large_event() -> None:
    """If an event is too large for any batch, its line is a bad line."""
    phrase = b"x" * 524_288
    line = b'{"search":{"sessionExternalId":"a1","searchPhrase":"%b"}}' % phrase

    assert ["in:1: search must be at most 524286 bytes of JSON"] == complaints(line)


def test_endless_line() -> None:
    """If a line is endless, it becomes one bad line and takes limited memory; the next line is parsed as usual."""
    tracemalloc.start()
    lines = Lines("in", Clickstream(1, 1), allow_custom=False)
    found = [found for _ in range(100) for found in lines.feed(b"x" * MAX_LINE)]
    found += lines.feed(b"x\n" + VIEW + b"\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [f"in:1: {TOO_LONG}", str(VIEWED)] == list(map(str, found))
    assert peak < 20 * MAX_LINE


def test_a_line_in_small_pieces_is_not_copied_for_each() -> None:
    """If a long line arrives in small pieces, the bytes read so far are not copied for each piece."""
    lines = Lines("in", Clickstream(1, 1), allow_custom=False)
    buffers = {id(lines._rest) for _ in range(1000) for _ in [*lines.feed(b"x" * 100), None]}

    assert 1 == len(buffers)


def test_endless_last_line() -> None:
    """If the last line is too long and has no line break, it is a bad line."""
    assert [f"in:1: {TOO_LONG}"] == complaints(b"x" * (MAX_LINE + 1))


@PROPERTY
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """In whatever pieces an input arrives, the same events and bad lines are found, and no error is raised."""
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(bounds)]

    assert found_in(data) == found_in(*pieces)


@PROPERTY
@given(text=st.text(alphabet='{}[]":,view1 \n\r\x00', max_size=200), header=st.sampled_from([b"", HEADER + b"\n"]))
def test_every_line_is_one_thing(text: str, header: bytes) -> None:
    """If a line is not blank, it becomes exactly one event or one bad line."""
    filled = [line for line in text.encode().split(b"\n") if line.strip()]

    assert len(filled) == len(found_in(header + text.encode()))


@pytest.mark.parametrize(("price", "quantity"), [(-1, 1), (float("nan"), 1), (1, 0)])
def test_impossible_price_or_quantity(price: float, quantity: float) -> None:
    """If price or quantity is impossible, an error is raised before any row is parsed."""
    with pytest.raises(EventValidationError):
        Clickstream(price, quantity)


def read(path: Path) -> tuple[bytes, str | None]:
    """Return all data of an input, and the reason why it could not be read to its end (None if it could)."""
    *chunks, last = Source(path).chunks()
    return b"".join(chunk.data for chunk in chunks), last.failure


def test_gzip_by_its_first_bytes(tmp_path: Path) -> None:
    """A gzip file is recognized by its content; a file that consists of several gzip members is read completely."""
    path = tmp_path / "events.txt"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))

    assert (b"one\ntwo\n", None) == read(path)


@pytest.mark.parametrize("step", [1, 2, 3, 21, 22, 23])
def test_gzip_in_small_pieces(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a gzipped stream arrives in small pieces, it is read completely, even if a header is split."""

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(step if size is None or size < 0 else min(step, size))

    stdin = io.TextIOWrapper(Pipe(gzip.compress(b"one\n") + gzip.compress(b"two\n")))
    monkeypatch.setattr("sys.stdin", stdin)

    assert (b"one\ntwo\n", None) == read(Path("-"))


@pytest.mark.parametrize("data", [b"", b"\x1f", b"x", b"\x1f\x8b"[:1] + b"x"])
def test_tiny_files_are_plain(data: bytes, tmp_path: Path) -> None:
    """If a file has zero bytes or one byte, it is read as plain text."""
    path = tmp_path / "events"
    path.write_bytes(data)

    assert (data, None) == read(path)


def test_gzip_cut_short(tmp_path: Path) -> None:
    """If a gzip file is truncated, it is read as far as possible, and reported as truncated."""
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(b"one\n" * 100_000)[:-100])
    data, failure = read(path)

    assert data.startswith(b"one\n")
    assert failure == "the gzip data ends too early"


@pytest.mark.parametrize("junk", [b"junk", b"\x1f\x8b\x08\x00" + b"\xff" * 20])
def test_gzip_with_junk(junk: bytes, tmp_path: Path) -> None:
    """If a gzip file is damaged, it is reported as damaged."""
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(b"one\n") + junk)
    data, failure = read(path)

    assert data == b"one\n"
    assert str(failure).startswith("the gzip data is damaged")


def test_position_is_of_the_stored_file(tmp_path: Path) -> None:
    """If a gzip file is read, the position counts compressed bytes, so it ends at the file's size."""
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(b"one\n" * 100_000))
    source = Source(path)
    positions = [chunk.position for chunk in source.chunks()]

    assert sorted(positions) == positions
    assert source.size == positions[-1] == total_size([source])


def test_file_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a file may not be read, the command prints one sentence and ends before anything is sent."""
    path = tmp_path / "events"
    path.touch()
    # The tests may run as root, who may read every file, so the check is replaced.
    monkeypatch.setattr("os.access", lambda *_: False)

    with pytest.raises(typer.Exit) as caught:
        Source(path)

    assert (2, f"error: cannot read {path}: permission denied\n") == (
        caught.value.exit_code,
        capsys.readouterr().err,
    )


async def test_defect_while_reading_is_raised() -> None:
    """If the reading thread raises an error, the event loop raises this error and does not end the input silently."""

    class Broken(Source):
        def chunks(self) -> Generator[Chunk]:
            raise ZeroDivisionError
            yield

    with pytest.raises(ZeroDivisionError):
        _ = [chunk async for chunk in Reader([Broken(Path("-"))]).chunks()]


def test_file_that_goes_away(tmp_path: Path) -> None:
    """If a file is removed before it is read, the chunk's `failure` says so, and no error is raised."""
    path = tmp_path / "events"
    path.touch()
    source = Source(path)
    path.unlink()

    assert ["cannot be read: No such file or directory"] == [chunk.failure for chunk in source.chunks()]
