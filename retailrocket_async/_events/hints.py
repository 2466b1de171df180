"""Guesses what a refused value was meant to be, so that the error message can say how to correct the value.

A hint is the end of a message, e.g. ``"; convert it with int()"``, or ``""`` if there is no good guess. Hints are made
only after a validator has refused a value, which is rare, so speed does not matter here. The value may be any object of
the caller, so no method of the value's own class is called.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from decimal import Decimal
from typing import Final, cast

from retailrocket_async._errors import type_name

_LONGEST: Final = 80
"""Longest text, in characters, for which a hint is made. An id or a phone number with its separators is shorter."""

_INT64: Final = range(-(2**63), 2**63)

_INTEGER: Final = re.compile(r"([+-]?\d{1,19})(\.0*)?")

_UUID: Final = re.compile(
    r"""(?:urn:)?(?:uuid:)?["'({<\[]*[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}["')}>\]]*""",
    re.ASCII | re.IGNORECASE,
)

_PHONE: Final = re.compile(r"(?:tel:|phone:)?(\+*)([0-9]{7,25})", re.IGNORECASE)
_TRUNK_ZERO: Final = re.compile(r"\(\s*0\s*\)")
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)


def int_hint(value: object) -> str:
    """Return a hint at `int()` for a value that is a whole number of another type, e.g. ``"123"`` or numpy's int64."""
    kind = type(value)
    if kind is int or type_name(value) in ("bool", "bool_"):
        return ""
    if kind is str or kind is bytes:
        text = cast("str", value) if kind is str else cast("bytes", value)[: _LONGEST + 1].decode("latin-1")
        found = _INTEGER.fullmatch(text.strip()) if len(text) <= _LONGEST else None
        if found is None or int(found[1]) not in _INT64:
            return ""
        return "; convert it with int()" if found[2] is None else "; cut off the fraction, and convert it with int()"
    return "; convert it with int()" if _is_whole(value, kind) else ""


def _is_whole(value: object, kind: type) -> bool:
    if issubclass(kind, float):
        # A float above 2**53 may differ from the id that was converted to this float.
        return float.is_integer(cast("float", value)) and abs(float.__float__(cast("float", value))) <= 2**53
    if kind is Decimal:
        number = cast("Decimal", value)
        return number.is_finite() and abs(number) < 2**63 and number == number.to_integral_value()
    # Numpy's integers, and subclasses of int such as the members of an IntEnum, can be used as an index.
    return any("__index__" in vars(base) for base in kind.__mro__)


def uuid_hint(value: object) -> str:
    """Return a hint at `uuid4().hex` for a UUID: as an object, or as text with hyphens, braces or ``urn:uuid:``."""
    text = value if type(value) is str else ""
    if type(value) is uuid.UUID or (len(text) <= _LONGEST and _UUID.fullmatch(text.strip())):
        return "; a UUID must have no hyphens and no other marks: use uuid4().hex"
    return ""


def phone_hint(value: object) -> str:
    """Return the E.164 form that a refused phone number probably means, e.g. ``"; probably '+79161234567'"``.

    A number without a country code is taken for a Russian number if its length and first digits allow this.
    """
    number = _e164(value)
    return f"; probably {number!r}" if number else ""


def _e164(value: object) -> str | None:
    text = value if type(value) is str else ""
    if type(value) is int and 0 < value < 10**16:
        # The text of a larger number would be slow to make.
        text = str(value)
    if len(text) > _LONGEST:
        return None
    found = _PHONE.fullmatch(_joined(text))
    if found is None:
        return None
    plus, digits = found[1], found[2]
    number = f"+{_with_country_code(digits, international=bool(plus))}"
    return number if _E164.fullmatch(number) else None


def _joined(text: str) -> str:
    """Return a phone number without the characters that divide it; digits of other scripts become ASCII digits."""
    # "+44 (0)20 ..." and "0044 (0)20 ...": the zero is dialled only inside the country.
    if text.strip().startswith(("+", "00")):
        text = _TRUNK_ZERO.sub("", text)
    kept: list[str] = []
    for letter in text:
        digit = unicodedata.decimal(letter, None)
        if digit is not None:
            kept.append(str(digit))
        elif letter == "\N{FULLWIDTH PLUS SIGN}":
            kept.append("+")
        # Categories: spaces, invisible characters, dashes, brackets; and dots, slashes, tildes and the minus sign.
        elif unicodedata.category(letter) not in ("Zs", "Cc", "Cf", "Pd", "Ps", "Pe") and letter not in "./~_\u2212":
            kept.append(letter)
    return "".join(kept)


def _with_country_code(digits: str, *, international: bool) -> str:  # noqa: PLR0911 - one case of the numbering plan each
    """Return the digits of a number with its country code, without the prefixes that callers dial.

    Args:
        digits: the digits as given.
        international: whether the number began with a plus sign.
    """
    if not international:
        if digits.startswith("00"):
            return _with_country_code(digits[2:], international=True)
        if len(digits) == 10 and digits[0] in "3489":
            return f"7{digits}"
        if len(digits) == 11 and digits.startswith("80"):
            # 80 is the Belarusian prefix for calls inside the country. The number is not a Russian one (prefix 8),
            # because no Russian area code begins with a zero.
            return f"375{digits[2:]}"
        if len(digits) == 11 and digits[0] == "8":
            return f"7{digits[1:]}"
        if len(digits) > 11 and digits.startswith("810"):
            # 810 is the Russian prefix for international calls, usually written 8~10.
            return digits[3:]
    elif len(digits) == 11 and digits.startswith(("89", "8800")):
        # This is a Russian number whose prefix 8 was written as +8: no country code begins with 89, and no number of
        # Bangladesh (880) begins with a zero.
        return f"7{digits[1:]}"
    if len(digits) == 12 and digits.startswith("78"):
        # Both the country code and the prefix for calls inside Russia were written.
        return f"7{digits[2:]}"
    return digits
