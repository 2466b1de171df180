"""If a refused value is nearly right, the error message has a hint how to correct the value."""

from __future__ import annotations

import enum
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import EventValidationError, GroupView, SetContact, View
from tests.support.ids import shown
from tests.support.strategies import PROPERTY, SESSION, Fractional, Whole

GUID = "550e8400-e29b-41d4-a716-446655440000"


class Shelf(enum.IntEnum):
    """An int that also has a name."""

    TOP = 1


def phone_error(phone: Any) -> str:
    """Return the message about a refused phone number."""
    with pytest.raises(EventValidationError) as caught:
        SetContact(session_external_id=SESSION, contact_external_id="c1", phone=phone)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given_number", "meant"),
    [
        ("+7 916 123 45 67", "+79161234567"),
        ("+7 (916) 123-45-67", "+79161234567"),
        ("+7\xa0916\u2011123\u201145\u201167", "+79161234567"),
        ("+7.916.123.45.67", "+79161234567"),
        (" +79161234567\n", "+79161234567"),
        ("\u202a+79161234567\u202c", "+79161234567"),
        ("tel:+7-916-123-45-67", "+79161234567"),
        ("+٧٩١٦١٢٣٤٥٦٧", "+79161234567"),
        ("\uff0b79161234567", "+79161234567"),
        ("79161234567", "+79161234567"),
        (79161234567, "+79161234567"),
        ("8 916 123 45 67", "+79161234567"),
        ("8-111-222-33-44", "+71112223344"),
        ("8 800 555-35-35", "+78005553535"),
        ("8(495)1234567", "+74951234567"),
        ("9161234567", "+79161234567"),
        ("(495) 123-45-67", "+74951234567"),
        ("+8 800 555 35 35", "+78005553535"),
        ("+8 (916) 123-45-67", "+79161234567"),
        ("+7 8 916 123 45 67", "+79161234567"),
        ("0079161234567", "+79161234567"),
        ("00 44 20 7946 0958", "+442079460958"),
        ("+44 (0)20 7946 0958", "+442079460958"),
        ("0044 (0) 20 7946 0958", "+442079460958"),
        ("8~10 49 30 1234567", "+49301234567"),
        ("375 29 123-45-67", "+375291234567"),
        ("80291234567", "+375291234567"),
        ("+1 (212) 555-0100", "+12125550100"),
        ("1-212-555-0100", "+12125550100"),
    ],
)
def test_phone(given_number: Any, meant: str) -> None:
    """If a refused phone number has wrong marks or prefixes, the message shows the probable number in E.164 form."""
    assert phone_error(given_number).endswith(f"; probably '{meant}'")
    assert SetContact(session_external_id=SESSION, contact_external_id="c1", phone=meant).phone == meant


@pytest.mark.parametrize(
    "phone",
    [
        *("", "+", "123", "Ivan Petrov", "+7 916 123 45 67 ext. 8", "+79161234567, +79161234568", "a@b.ru", "0" * 12),
        *(
            "+0123456789",
            "+" + "1" * 16,
            "1" * 30,
            "1 " * 1_000_000,
            -79161234567,
            10**400,
            True,
            7916123.5,
            b"79161234567",
        ),
    ],
    ids=shown,
)
def test_no_phone(phone: Any) -> None:
    """If it is not clear which phone number a value means, the message suggests no number."""
    assert "probably" not in phone_error(phone)


@PROPERTY
@given(phone=st.text(max_size=100) | st.text("0123456789+-() .~", max_size=30) | st.integers())
def test_every_guess_is_valid(phone: Any) -> None:
    """If a value is refused and the message suggests a phone number, the suggested number is accepted."""
    try:
        SetContact(session_external_id=SESSION, contact_external_id="c1", phone=phone)
    except EventValidationError as error:
        _, guessed, number = str(error).partition("; probably ")
        if guessed:
            SetContact(session_external_id=SESSION, contact_external_id="c1", phone=number.strip("'"))


@pytest.mark.parametrize("field", ["session_external_id", "contact_external_id"])
@pytest.mark.parametrize(
    "value",
    [
        GUID,
        GUID.upper(),
        f"{{{GUID}}}",
        f"({GUID})",
        f"urn:uuid:{GUID}",
        f"URN:UUID:{GUID}",
        f" {GUID}\n",
        uuid.UUID(GUID),
    ],
    ids=shown,
)
def test_uuid(field: str, value: Any) -> None:
    """If an id is a UUID with hyphens or other marks, the message suggests `uuid4().hex` and does not show the id."""
    with pytest.raises(EventValidationError) as caught:
        SetContact(**{"session_external_id": SESSION, "contact_external_id": "c1", field: value})

    assert str(caught.value).endswith("a UUID must have no hyphens and no other marks: use uuid4().hex")
    assert "550e8400" not in str(caught.value).lower()


@pytest.mark.parametrize("value", ["a-b", "", GUID[:-1], f"{GUID}0", f"{GUID}-1", uuid.UUID, GUID.encode(), None])
def test_no_uuid(value: Any) -> None:
    """If an id is no UUID, the message does not mention one."""
    with pytest.raises(EventValidationError) as caught:
        View(session_external_id=value, product_id=1)

    assert "uuid4" not in str(caught.value)


class Index:
    """An integer type of another library, like numpy's int64."""

    def __index__(self) -> int:
        """Raise an error, because a hint must not call methods of the value."""
        raise RuntimeError("called")


INT_ENDINGS = {
    "; convert it with int()": [
        *("123", "  12 ", "+5", "-5", "0", str(2**63 - 1), b"12", "١٢"),
        *(12.0, -0.0, Fractional(3.0), Decimal(5), Decimal("5.00"), Whole(1), Shelf.TOP, Index()),
    ],
    "; cut off the fraction, and convert it with int()": ["12.0", " 12.00 ", "12."],
}


@pytest.mark.parametrize(
    ("value", "hint"), [(value, hint) for hint, values in INT_ENDINGS.items() for value in values], ids=shown
)
def test_int(value: Any, hint: str) -> None:
    """If an id is a whole number of another type, the message suggests `int()`, also for an id in a list."""
    for cls, fields in ((View, {"product_id": value}), (GroupView, {"group_id": 1, "product_ids": [1, value]})):
        with pytest.raises(EventValidationError) as caught:
            cls(session_external_id=SESSION, **fields)

        assert caught.value.rule.endswith(hint)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, "", "abc", "12.5", "1e3", "1,000", "0x10", str(2**63), "9" * 1_000_000, 12.5, float("nan")),
        *(float("inf"), 1e300, Decimal("0.5"), Decimal("1e999999"), Decimal("sNaN"), 2**63, [1], object(), int),
    ],
    ids=shown,
)
def test_no_int(value: Any) -> None:
    """If `int()` would not convert a value to a valid id, the message does not mention `int()`."""
    with pytest.raises(EventValidationError) as caught:
        View(session_external_id=SESSION, product_id=value)

    assert "int()" not in str(caught.value)
