"""Well-known hostile inputs. Each is passed to every target, whatever kind of input the target expects.

`SMALL` has inputs as bytes. `LARGE` has functions that take a size in bytes and return an input of about that size.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, TypeAlias

from retailrocket_async import EVENT_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

Case: TypeAlias = "Callable[[int], bytes]"

VIEW = b'{"view":{"sessionExternalId":"a","productId":1,"timestamp":"2018-09-15T15:53:00Z"}}'
HEADER = b"timestamp,visitorid,event,itemid,transactionid\n"
ROW = b"1430622120563,7,view,1,"


def _view(value: bytes, field: bytes = b"productId") -> bytes:
    return b'{"view":{"sessionExternalId":"a","productId":1,"%b":%b}}' % (field, value)


def _search(phrase: bytes) -> bytes:
    return b'{"search":{"sessionExternalId":"a","searchPhrase":%b}}' % phrase


def _contact(data: bytes) -> bytes:
    return b'{"setContact":{"sessionExternalId":"a","contactExternalId":"a","customData":%b}}' % data


def _order(amount: bytes) -> bytes:
    shared = b'"sessionExternalId":"a","productId":1,"transaction":"1"'
    return b'{"order":{%b,"price":%b,"quantity":%b}}' % (shared, amount, amount)


def _custom(fields: bytes) -> bytes:
    return b'{"newEvent":%b}' % fields


def _ids(ids: bytes) -> bytes:
    return b'{"groupView":{"sessionExternalId":"a","groupId":1,"productIds":[%b]}}' % ids


NUMBERS = [
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809"),
    *(b"18446744073709551615", b"18446744073709551616", b"-18446744073709551616", b"100000000000000000001"),
    *(b"1e400", b"-1e400", b"1e-400", b"1e18", b"1e19", b"9e15", b"1E+2", b"-0", b"-0.0", b"1.0", b"0.1", b"1e999999"),
    *(b"9" * 309, b"1" + b"0" * 308, b"0." + b"1" * 1000, b"1." + b"0" * 30, b"01", b"1.", b".5", b"+1", b"0x1"),
    *(b"NaN", b"Infinity", b"-Infinity", b"1_000", "٣".encode(), b"1e", b"-"),
]
TEXTS = {
    "raw surrogate": b'"\xed\xa0\x80"',
    "escaped surrogate": b'"\\ud800"',
    "escaped surrogates the wrong way round": b'"\\udc00\\ud800"',
    "escaped pair": b'"\\ud83d\\ude00"',
    "raw nul": b'"\x00"',
    "escaped nul": b'"\\u0000"',
    "raw newline": b'"\n"',
    "invalid utf-8": b'"\xff"',
    "cut utf-8": b'"\xd0"',
    "overlong utf-8": b'"\xc0\xaf"',
    "beyond unicode": b'"\xf4\x90\x80\x80"',
    "noncharacter": b'"\xef\xbf\xbf"',
    "mark inside": b'"\xef\xbb\xbf"',
    "separators": b'"\xe2\x80\xa8\xe2\x80\xa9\xc2\x85\x7f"',
    "unknown escape": b'"\\x41"',
    "unfinished": b'"abc',
}
CONTEXTS: dict[str, Callable[[bytes], bytes]] = {
    "id": _view,
    "time": lambda value: _view(value, b"timestamp"),
    "phrase": _search,
    "amount": _order,
    "data": lambda value: _contact(b'{"a":%b}' % value),
    "custom": lambda value: _custom(b'{"a":%b}' % value),
    "ids": _ids,
    "name": lambda value: b"{%b:{}}" % value,
    "key": lambda value: _contact(b"{%b:1}" % value),
}

SMALL: dict[str, bytes] = {
    "nothing": b"",
    "nul": b"\x00",
    "mark alone": b"\xef\xbb\xbf",
    "mark before": b"\xef\xbb\xbf" + VIEW,
    "marks before": b"\xef\xbb\xbf\xef\xbb\xbf" + VIEW,
    "nul behind": VIEW + b"\x00",
    "cut": VIEW[:-5],
    "utf-16": VIEW.decode().encode("utf-16"),
    "utf-32": VIEW.decode().encode("utf-32"),
    "two in one line": VIEW + VIEW,
    "in an array": b"[" + VIEW + b"]",
    "repeated name": b'{"view":{},' + VIEW[1:],
    "repeated key": _view(b'"x","productId":7'),
    "repeated key that hides a deep value": _contact(b'{"a":%b,"a":1}' % (b"[" * 1000 + b"]" * 1000)),
    "repeated key that hides a long integer": _contact(b'{"a":18446744073709551616,"a":1}'),
    "long integer in a text": _contact(b'{"a":"18446744073709551616","b\\"":"\\\\"}'),
    "long fraction": _contact(b'{"a":0.18446744073709551616,"b":18446744073709551616.5,"c":1e30}'),
    "deep enough": _contact(b'{"a":%b}' % (b"[" * 31 + b"]" * 31)),
    "too deep": _contact(b'{"a":%b}' % (b"[" * 32 + b"]" * 32)),
    "as deep as orjson goes": _contact(b'{"a":%b}' % (b"[" * 1020 + b"]" * 1020)),
    "null for all": b'{"view":{"sessionExternalId":null,"productId":null,"stockId":null,"timestamp":null}}',
    "empty gzip": gzip.compress(b"", mtime=0),
    "gzip's mark": b"\x1f\x8b",
    "gzip's head": b"\x1f\x8b\x08\xff" + b"\xff" * 30,
    "quotes": b'"""""',
    "row": HEADER + ROW,
    "bare row": ROW,
    "bare order": b"1430622120563,7,transaction,1,4000",
    "bare quoted order": b'"1430622120563",7,"transaction",1,"4,""000"',
    "quoted row": HEADER + b'"1430622120563","7","view","1",""',
    "row with nul": HEADER + b"1430622120563,7,vi\x00ew,1,",
    "row with a return": HEADER + b'"1\r2",7,view,1,\r\r\n',
    "row of the year 10000": HEADER + b"253402300800000,7,view,1,",
    "date without end": b"Fri, 31 Dec 9999 23:59:59 -2359",
    "date before all": b"Mon, 01 Jan 0001 00:00:00 +2359",
    "date of no year": b"Thu, 29 Feb 0 12:00:30",
    "seconds of many digits": b"9" * 5000,
    "url with a lone surrogate": b"https://a/\xed\xa0\x80",
    "url of a bad name": b"https://xn--/",
    "url with an empty query": b"https://a/1.0?",
    "url with an empty fragment": b"https://a/1.0#",
    "url with a large port": b"https://a:65536/",
    "url with a negative port": b"https://a:-18446744073709551617/",
    "url with a user": b"https://@a/",
    "url of a long name": b"https://" + b"a" * 300,
    "url of this host, nearly": b"http://127.0.0.1.a/",
    **{f"{name}: {number[:30].decode()}": made(number) for name, made in CONTEXTS.items() for number in NUMBERS},
    **{f"{name}: {kind}": made(text) for name, made in CONTEXTS.items() for kind, text in TEXTS.items()},
    **{f"nothing in {name}": b'{"%b":{}}' % name.encode() for name in EVENT_TYPES},
}
"""Inputs by name, most of them of a few hundred bytes. The fuzzer starts from these inputs."""


def _repeated(text: bytes, size: int) -> bytes:
    return text * (size // len(text))


LARGE: dict[str, Case] = {
    "digits for an id": lambda size: _view(_repeated(b"1", size)),
    "digits for an amount": lambda size: _order(_repeated(b"1", size // 2)),
    "digits of a fraction": lambda size: _order(b"0." + _repeated(b"1", size // 2)),
    "digits of an exponent": lambda size: _order(b"1e" + _repeated(b"1", size // 2)),
    "phrase": lambda size: _search(b'"%b"' % _repeated(b"x", size)),
    "phrase of escapes": lambda size: _search(b'"%b"' % _repeated(b"\\u0001", size)),
    "phrase of pairs": lambda size: _search(b'"%b"' % _repeated(b"\\ud83d\\ude00", size)),
    "session": lambda size: _view(b'"%b"' % _repeated(b"x", size), b"sessionExternalId"),
    "timestamp": lambda size: _view(b'"%b"' % _repeated(b"9", size), b"timestamp"),
    "name": lambda size: b'{"%b":{}}' % _repeated(b"x", size),
    "key": lambda size: _view(b"1", _repeated(b"x", size)),
    "address": lambda size: _contact(b'{},"email":"%b"' % _repeated(b"a@", size)),
    "text in an object": lambda size: _contact(b'{"a":"%b"}' % _repeated(b"x", size)),
    "long integer behind texts": lambda size: _custom(b'{"a":"%b","b":18446744073709551616}' % _repeated(b'\\"', size)),
    "open lists": lambda size: _repeated(b"[", size),
    "open objects": lambda size: _repeated(b'{"a":', size),
    "closed lists": lambda size: _contact(_repeated(b"[", size // 2) + _repeated(b"]", size // 2)),
    "keys": lambda size: _contact(b"{%b}" % b",".join(b'"%07d":1' % number for number in range(size // 12))),
    "one key, repeated": lambda size: _view(_repeated(b'1,"productId":', size) + b"1"),
    "unknown fields": lambda size: _view(b"1", b'":1,"'.join(b"%07d" % number for number in range(size // 12))),
    "ids": lambda size: _ids(_repeated(b"1,", size) + b"1"),
    "texts for ids": lambda size: _ids(_repeated(b'"",', size) + b"1"),
    "values": lambda size: _contact(b'{"a":[%b1]}' % _repeated(b"0.1,", size)),
    "empty lists": lambda size: _custom(b'{"a":[%b1]}' % _repeated(b"[],", size)),
    "numbers in a batch": lambda size: b"[%b1]" % _repeated(b"1,", size),
    "envelopes in a batch": lambda size: b"[%b{}]" % _repeated(b'{"view":{}},', size),
    "blanks": lambda size: _repeated(b" ", size) + VIEW,
    "nuls": lambda size: _repeated(b"\x00", size),
    "lines": lambda size: _repeated(b"\n", size),
    "one line": lambda size: HEADER + _repeated(b"x", size),
    "small bad lines": lambda size: _repeated(b"x\n", size),
    "returns": lambda size: HEADER + b'"' + _repeated(b"\r", size),
    "columns": lambda size: HEADER + _repeated(b",", size),
    "quotes": lambda size: HEADER + _repeated(b'"', size),
    "quoted columns": lambda size: HEADER + _repeated(b'"",', size),
    "long column": lambda size: HEADER + b"1,7,%b,1,5" % _repeated(b"x", size),
    "gzip of little": lambda size: gzip.compress(_repeated(b"\n", size * 10), mtime=0),
    "gzip of parts": lambda size: _repeated(gzip.compress(b"x\n", mtime=0), size),
    "gzip with a name": lambda size: b"\x1f\x8b\x08\x08" + bytes(6) + _repeated(b"x", size) + bytes(20),
    "digits": lambda size: _repeated(b"9", size),
    "words": lambda size: _repeated(b"Thu ", size),
    "commas": lambda size: _repeated(b",", size),
    "brackets": lambda size: b"Thu, 29 Feb 2024 " + _repeated(b"(", size),
    "dots": lambda size: b"https://" + _repeated(b"a.", size),
    "steps": lambda size: b"https://a" + _repeated(b"/..", size),
    "percents": lambda size: b"https://a/" + _repeated(b"%", size),
}
"""Inputs by name that are hostile because they are large; each value makes an input of about a given size."""
