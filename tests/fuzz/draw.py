"""Makes Python values and JSON texts from the bytes that a fuzzer provides.

Random bytes are hardly ever JSON, and never a `Decimal`. So a `Draw` takes the bytes as a sequence of decisions about
the value to make. Every input then makes some value, and a small change of the input makes a similar value.
"""

from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from retailrocket_async import EVENT_TYPES
from tests.support.strategies import (
    HOSTILE,
    MINIMAL,
    MOMENT,
    SESSION,
    Daylight,
    Exact,
    FadingZone,
    Fractional,
    Text,
    Whole,
)

T = TypeVar("T")

NESTING = 4
"""The most levels of nesting in a value. Deeper values are among the fixed inputs in `tests.fuzz.cases`."""


class Draw:
    """Makes decisions from the bytes of `data`, one after the other. When all bytes are used, each next byte is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """Return the next byte."""
        at, self._at = self._at, self._at + 1
        return self._data[at] if at < len(self._data) else 0

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of `choices`, of which there are at most 256; the next byte decides which one."""
        return choices[self.byte() % len(choices)]

    def chance(self, one_in: int) -> bool:
        """Return True in about one of `one_in` calls; the next byte decides."""
        return self.byte() % one_in == 1

    def bytes(self) -> bytes:
        """Return up to 63 of the next bytes; the byte before them decides how many."""
        size = self.byte() % 64
        at, self._at = self._at, self._at + size
        return self._data[at : self._at]

    def text(self) -> str:
        """Return a short text of any characters, which may include lone surrogates."""
        data, kind = self.bytes(), self.byte() % 3
        if kind == 2:
            return data[: len(data) // 2 * 2].decode("utf-16-le", "surrogatepass" if self.chance(2) else "replace")
        return data.decode("latin-1" if kind else "utf-8", "surrogateescape")

    def rest(self) -> bytes:
        """Return all remaining bytes."""
        at, self._at = self._at, len(self._data)
        return self._data[at:]


# --- Python values ---


class EndlessList(list[int]):
    """A list whose iteration never ends."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


class EndlessSequence(Sequence[int]):
    """A sequence with the length 0 whose iteration never ends."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, place: Any) -> Any:
        return 1


class EndlessMapping(Mapping[str, int]):
    """A mapping with the length 0 whose iteration never ends."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield str(number := number + 1)


class FickleMapping(Mapping[str, int]):
    """A mapping that lists four keys, and raises a LookupError for each of them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: str) -> NoReturn:
        raise LookupError(key)

    def __iter__(self) -> Iterator[str]:
        yield from ("product_id", "quantity", "price", "stock_id")


_SLOW = {"int of a million bits", "long decimal", "10 MB of text", "1 MB of bytes", "list of long texts"}

_ODD: list[Any] = [
    *(value for name, value in HOSTILE.items() if name not in _SLOW),
    *(range(10**12), range(3), EndlessList(), EndlessSequence(), EndlessMapping(), FickleMapping()),
    *(Decimal("NaN"), Decimal("-Infinity"), Decimal("1e-999999"), Decimal("-0"), Decimal(2**64), 1e308, 5e-324, -0.0),
    *(UserList([1]), UserDict(a=1), deque([1]), defaultdict(list, a=1), OrderedDict(a=1), MappingProxyType({"a": 1})),
    *(UTC, timedelta(1), MOMENT.date(), MOMENT.timetz(), memoryview(b"12"), Fraction(10**5000, 3)),
    *(object, type, NotImplemented, ..., {}.keys(), map(int, "12"), slice(1), {None: {None: None}}),
    *("\x00", "\udfff", "a\ud800", "a@b\ud800", "1" * 51, "a" * 300 + "@b", "+1234567", "2018-09-15T15:53:00Z"),
]
"""Unusual values, which are wrong for most fields."""

_USUAL: list[Any] = [
    *(1, 0, -1, 2**63 - 1, -(2**63), 2**63, 2**64, 1.0, 0.5, Decimal("9.90"), "a", "1", SESSION, "красное платье"),
    *(None, True, MOMENT, "a@b", "+79161234567", [1], (1, 2), {"a": [1, {"b": None}]}),
]


def value(draw: Draw, depth: int = NESTING) -> Any:
    """Return a Python value: a usual one, an odd one, a drawn text or number, or a collection of such values."""
    kind = draw.byte() % 12
    makers: list[Callable[[Draw], Any]] = [
        *[lambda draw: draw.pick(_USUAL)] * 3,
        *[lambda draw: draw.pick(_ODD)] * 2,
        *[Draw.text, lambda draw: Text(draw.text()), Draw.bytes],
        *[_number, _moment],
    ]
    if kind < len(makers):
        return makers[kind](draw)
    items = [value(draw, depth - 1) for _ in range(draw.byte() % 5)] if depth else []
    if kind == len(makers):
        return draw.pick([list, tuple, iter, deque])(items)
    return draw.pick([dict, OrderedDict, UserDict, MappingProxyType])({_key(draw): item for item in items})


def _key(draw: Draw) -> Any:
    return draw.text() if draw.chance(3) else draw.pick(["a", "product_id", "quantity", "price", "stock_id", 1, None])


def _number(draw: Draw) -> Any:
    made = draw.pick([int, float, Decimal, Whole, Fractional, Exact])
    digits = "".join(chr(48 + byte % 10) for byte in draw.bytes()) or "0"
    if issubclass(made, int):
        return made(draw.pick([1, -1])) * made(digits)
    return made(f"{draw.pick(['', '-'])}{digits}e{draw.byte() - 128}")


def _moment(draw: Draw) -> datetime:
    zone = draw.pick([UTC, None, Daylight(), FadingZone(), timezone(timedelta(seconds=draw.byte() * 61 - 7000))])
    year = 1 + draw.byte() * 9998 // 255
    return datetime(year, 1 + draw.byte() % 12, 1 + draw.byte() % 28, draw.byte() % 24, 59, 59, draw.byte(), zone)


def fields(draw: Draw, cls: type[Any], names: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments for `cls`: valid required ones, and then one to three random ones with random values."""
    made: dict[str, Any] = {"session_external_id": SESSION, **MINIMAL.get(cls, {})}
    for _ in range(1 + draw.byte() % 3):
        made[draw.pick(names)] = value(draw)
    return made


# --- JSON ---

_NAMES = [*EVENT_TYPES, "newEvent", "visitorEvents", "View", "", "\\u0000", "\\ud800", "x" * 51]
_FIELDS = [
    *("sessionExternalId", "productId", "timestamp", "stockId", "groupId", "productIds", "quantity", "price"),
    *("transaction", "categoryId", "searchPhrase", "contactExternalId", "email", "phone", "customData"),
    *("recomBlockId", "impressionContentId", "groupView", "a", "", "\\u0000", "\\ud83d\\ude00", "session_external_id"),
]
_GOOD: dict[str, list[bytes]] = {
    "productIds": [b"[1]", b"[1,2]", b"[9223372036854775807,-9223372036854775808]"],
    "timestamp": [b'"2018-09-15T15:53:00+00:00"', b'"2018-09-15T15:53:00.123456Z"', b'"2018-W37-6T15:53-23:59"'],
    "phone": [b'"+79161234567"'],
    "email": [b'"a@b"', b'"\\u0022a@b\\u0022@c"'],
    "customData": [b"{}", b'{"a":[1,{"b":null}],"c":1e15}', b'{"id":18446744073709551617}', b'{"id":1e300}'],
    "searchPhrase": ['"платье"'.encode(), b'"\\u0000"', b'"\xed\xa0\x80"', b'"\\ud800"'],
}
_ID = [b"1", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616"]
_ATOMS = [
    *(b"null", b"true", b"false", b"[]", b"{}", b'""', b'"a"', b'"\\ud800"', b'"\xff"', b'"\x00"', b"NaN", b"-"),
    *(b"0", b"-0", b"-0.0", b"1.0", b"1e2", b"9e15", b"1e16", b"1e-400", b"1e400", b"0.1", b"-1", b"01", b"1."),
    *(b"-9223372036854775809", b"-18446744073709551617", b"1" * 30, b"9" * 400, b"0." + b"9" * 400),
    *_ID,
]


def json(draw: Draw, depth: int = NESTING) -> bytes:
    """Return a text that is JSON in most cases."""
    kind = draw.byte() % 8
    if kind < 4 or not depth:
        return draw.pick(_ATOMS)
    if kind == 4:
        return b'"%b"' % draw.bytes()
    if kind == 5:
        return b"%d" % (int.from_bytes(draw.bytes()[:10], "big", signed=True))
    if kind == 6:
        return b"[%b]" % b",".join(json(draw, depth - 1) for _ in range(draw.byte() % 4))
    return _object([_member(draw, json(draw, depth - 1)) for _ in range(draw.byte() % 4)])


def envelope(draw: Draw) -> bytes:
    """Return the JSON text of an envelope, which often has a few mistakes."""
    name = draw.pick(_NAMES)
    cls = EVENT_TYPES.get(name)
    needed = [] if cls is None else [camel(field) for field in ("session_external_id", *MINIMAL[cls])]
    members = [b'"%b":%b' % (field.encode(), _good(draw, field)) for field in needed]
    for _ in range(draw.byte() % 4):
        field = draw.pick(_FIELDS)
        text = json(draw) if draw.chance(2) else _good(draw, field)
        members.insert(draw.byte() % (len(members) + 1), b'"%b":%b' % (field.encode(), text))
    body = json(draw) if draw.chance(16) else _object(members)
    text = b'{"%b":%b}' % (name.encode(), body)
    if draw.chance(16):
        text = text[: draw.byte()] + draw.bytes() + text[draw.byte() :]
    return text


def _good(draw: Draw, field: str) -> bytes:
    if field.endswith("Id") and field[:-2] in ("product", "group", "category"):
        return draw.pick(_ID[:2])
    if field in ("price", "quantity"):
        return draw.pick([b"1", b"9.90", b"1e20", b"100000000000000000001"])
    return draw.pick(_GOOD.get(field, [b'"a"', b'"0Z"']))


def _member(draw: Draw, text: bytes) -> bytes:
    return b'"%b":%b' % (draw.pick(_FIELDS).encode(), text)


def _object(members: list[bytes]) -> bytes:
    return b"{%b}" % b",".join(members)


def camel(snake: str) -> str:
    """Return the wire name of a field, e.g. `productId` for `product_id`."""
    first, *others = snake.split("_")
    return first + "".join(map(str.capitalize, others))


DICTIONARY: list[bytes] = [
    *(b'"%b":' % name.encode() for name in [*EVENT_TYPES, *_FIELDS] if name.isalpha()),
    *_ATOMS[:40],
    *(good for several in _GOOD.values() for good in several),
    *(b"timestamp,visitorid,event,itemid,transactionid\n", b"1430622120563,7,view,1,\n", b",addtocart,1,"),
    *(b"\x1f\x8b\x08\x00", b"\xef\xbb\xbf", b"https://", b"http://127.0.0.1", b"[::1]", b"xn--", b" GMT", b"Thu, "),
]
"""Words that the fuzzer inserts into inputs."""
