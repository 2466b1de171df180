"""The emulator's strict check of events and batches: one test for each rule of the API's contract."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from retailrocket_async.emulator._schema import EVENTS, check_batch, check_event

SESSION = {"sessionExternalId": "60842392e4881c65e6c5e423"}
MOMENT = {"timestamp": "2018-09-15T15:53:00+00:00"}
STOCK = {"stockId": "NewYork"}

# The API's contract: the required and the optional fields of each event, with valid values. The table is written here
# a second time, so a mistake in the emulator's own table is found.
CONTRACT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "view": (SESSION | {"productId": 123456}, STOCK | MOMENT),
    "groupView": (SESSION | {"groupId": 654321, "productIds": [123456, 234567]}, STOCK | MOMENT),
    "addToBasket": (SESSION | {"productId": 123456}, STOCK | MOMENT),
    "order": (
        SESSION | {"productId": 1, "quantity": 3, "price": 1321.43, "transaction": "135243"},
        STOCK | MOMENT,
    ),
    "categoryView": (SESSION | {"categoryId": 5}, MOMENT),
    "search": (SESSION | {"searchPhrase": "подгузник для новорожденных"}, STOCK | MOMENT),
    "setContact": (
        SESSION | {"contactExternalId": "c1"},
        STOCK | MOMENT | {"email": "a@b.ru", "phone": "+79991234567", "customData": {"level": [1, None]}},
    ),
    "recomBlockViewed": (SESSION | {"recomBlockId": "block-1"}, MOMENT),
    "recomTap": (SESSION | {"productId": 1, "recomBlockId": "block-1"}, STOCK | MOMENT),
    "recomAddToBasket": (SESSION | {"productId": 1, "recomBlockId": "block-1"}, STOCK | MOMENT),
    "impressionContentViewed": (SESSION | {"impressionContentId": "ad 1"}, MOMENT),
    "impressionContentClicked": (SESSION | {"impressionContentId": "ad 1"}, MOMENT),
    "emailClick": (SESSION | {"mailTrackingId": "5b488f277ecc191c98859541"}, MOMENT | {"customData": {"a": [1]}}),
    "welcomeSequence": (SESSION | {"email": "a@b.ru"}, MOMENT),
    "categoryViewByCategoryPath": (SESSION | {"categoryPath": "Товары для дома/Кухня/Вилки"}, MOMENT),
}

ALONE = {"categoryViewByCategoryPath"}

INTEGERS = ("productId", "groupId", "categoryId")
IDENTIFIERS = ("sessionExternalId", "contactExternalId")
SHORT_TEXTS = ("stockId", "transaction", "recomBlockId", "impressionContentId")
TEXTS = (*IDENTIFIERS, *SHORT_TEXTS, "searchPhrase", "mailTrackingId", "categoryPath", "email", "phone", "timestamp")

INT64 = "must fit a signed 64-bit integer"
ISO = "must be ISO 8601 with an offset, such as 2018-09-15T15:53:00+00:00"


def home(field: str) -> str:
    """Return the name of an event that has this field."""
    return next(name for name, (required, optional) in CONTRACT.items() if field in required | optional)


def check(field: str, value: object) -> list[str]:
    """Check an event with `value` in `field` and valid values in all other fields. Return the reasons to refuse it."""
    name = home(field)
    required, optional = CONTRACT[name]
    return check_event(name, required | optional | {field: value})


def test_the_events_are_those_of_the_contract() -> None:
    """If the emulator's events are listed, they are those of the contract."""
    assert CONTRACT.keys() == EVENTS.keys()


@pytest.mark.parametrize("name", CONTRACT)
def test_required_fields_suffice(name: str) -> None:
    """If an event has only its required fields, it is valid."""
    assert [] == check_event(name, CONTRACT[name][0])


@pytest.mark.parametrize("name", CONTRACT)
def test_optional_fields_are_welcome(name: str) -> None:
    """If an event has all its fields, it is valid."""
    required, optional = CONTRACT[name]

    assert [] == check_event(name, required | optional)


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in CONTRACT.items() for field in fields[0]])
def test_every_required_field_is_missed(name: str, field: str) -> None:
    """If a required field is missing, the event is refused, and the reason names the field."""
    event = {key: value for key, value in CONTRACT[name][0].items() if key != field}

    assert [f"{field}: is missing"] == check_event(name, event)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field)
        for name, (required, optional) in CONTRACT.items()
        for field in sorted({key for fields in CONTRACT.values() for key in fields[0] | fields[1]})
        if field not in required | optional
    ]
    + [("groupView", "groupView"), ("view", "ProductId"), ("view", "userAgent")],
)
def test_fields_of_other_events_are_refused(name: str, field: str) -> None:
    """If an event has a field that only other events may have, the event is refused."""
    assert [f"{field}: is no field of this event"] == check_event(name, CONTRACT[name][0] | {field: "1"})


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"1"', "must be an integer, not a string"),
        ("true", "must be an integer, not a boolean"),
        ("null", "must be an integer, not null"),
        ("[1]", "must be an integer, not an array"),
        ("{}", "must be an integer, not an object"),
        ("1.5", "must be an integer, not a number with a fraction or an exponent"),
        ("2.0", "must be an integer, not a number with a fraction or an exponent"),
        ("1e3", "must be an integer, not a number with a fraction or an exponent"),
        ("9223372036854775808", INT64),
        ("-9223372036854775809", INT64),
        ("100000000000000000000", INT64),
    ],
)
def test_integers_are_exact(field: str, text: str, reason: str) -> None:
    """If the value of an integer field is not a JSON integer of at most 64 bits, the value is refused."""
    assert [f"{field}: {reason}"] == check(field, orjson.loads(text))


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0, -1])
def test_all_of_int64_is_an_integer(field: str, value: int) -> None:
    """If an id is any signed 64-bit integer, the id is valid."""
    assert [] == check(field, value)


@pytest.mark.parametrize(
    ("value", "reasons"),
    [
        ([], ["productIds: must not be empty"]),
        (1, ["productIds: must be an array of integers, not an integer"]),
        ("1", ["productIds: must be an array of integers, not a string"]),
        (
            [1, "2", True],
            [
                "productIds[1]: must be an integer, not a string",
                "productIds[2]: must be an integer, not a boolean",
            ],
        ),
        ([2**63], [f"productIds[0]: {INT64}"]),
    ],
)
def test_lists_of_products_are_checked_item_by_item(value: object, reasons: list[str]) -> None:
    """If `productIds` is no array, is empty or has bad items, it is refused; the reasons give each bad item's index."""
    assert reasons == check("productIds", value)


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1, "must be a string, not an integer"),
        (1.5, "must be a string, not a number with a fraction or an exponent"),
        (None, "must be a string, not null"),
        (False, "must be a string, not a boolean"),
        (["a"], "must be a string, not an array"),
    ],
)
def test_texts_are_strings(field: str, value: object, reason: str) -> None:
    """If the value of a text field is not a JSON string, the value is refused."""
    assert [f"{field}: {reason}"] == check(field, value)


@pytest.mark.parametrize("field", [name for name in TEXTS if name != "timestamp"])
def test_no_text_is_empty(field: str) -> None:
    """If the value of a text field is an empty string, the value is refused."""
    assert [f"{field}: must not be empty"] == check(field, "")


@pytest.mark.parametrize("field", IDENTIFIERS + SHORT_TEXTS)
def test_short_texts_end_at_fifty_characters(field: str) -> None:
    """If an identifier or a short text has fifty characters, it is valid; with fifty-one characters it is refused."""
    assert ([], [f"{field}: must be at most 50 characters, not 51"]) == (check(field, "a" * 50), check(field, "a" * 51))


@pytest.mark.parametrize("field", SHORT_TEXTS)
def test_length_is_counted_in_characters(field: str) -> None:
    """If a short text has fifty characters of any alphabet, the text is valid, however many bytes it has."""
    assert [] == check(field, "ё" * 49 + "😀")


@pytest.mark.parametrize("field", IDENTIFIERS)
@pytest.mark.parametrize("value", ["a-b", "a b", "a_b", "сессия", "a\n", "\u0661\u0662", "é", "a.b"])
def test_identifiers_are_ascii_letters_and_digits(field: str, value: str) -> None:
    """If an external id contains a character that is not an ASCII letter or digit, the id is refused."""
    assert [f"{field}: must be letters and digits only"] == check(field, value)


def test_a_search_phrase_may_be_long() -> None:
    """If a search phrase is very long, it is valid, because the contract has no maximum."""
    assert [] == check("searchPhrase", "слово " * 1000)


@pytest.mark.parametrize("field", ["quantity", "price"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1", "must be a number, not a string"),
        (True, "must be a number, not a boolean"),
        (None, "must be a number, not null"),
    ],
)
def test_numbers_are_exact(field: str, value: object, reason: str) -> None:
    """If the value of a number field is not a JSON number, the value is refused."""
    assert [f"{field}: {reason}"] == check(field, value)


@pytest.mark.parametrize(
    ("field", "value", "reasons"),
    [
        ("quantity", 0, ["quantity: must be above 0"]),
        ("quantity", -1, ["quantity: must be above 0"]),
        ("quantity", 0.0, ["quantity: must be above 0"]),
        ("quantity", 0.5, []),
        ("quantity", 2, []),
        ("price", -0.01, ["price: must be 0 or more"]),
        ("price", 0, []),
        ("price", 1321.43, []),
    ],
)
def test_numbers_keep_their_bounds(field: str, value: float, reasons: list[str]) -> None:
    """If a quantity is not above 0, or a price is below 0, the value is refused; fractions are valid."""
    assert reasons == check(field, value)


@pytest.mark.parametrize(
    "value",
    [
        "2018-09-15T15:53:00+00:00",
        "2018-09-15T15:53:00Z",
        "2018-09-15T15:53:00.1+03:00",
        "2018-09-15T15:53:00.123456789-11:30",
        "2024-02-29T00:00:00Z",
    ],
)
def test_moments_with_an_offset_are_timestamps(value: str) -> None:
    """If a timestamp is ISO 8601 with an offset, it is valid, with or without a fraction."""
    assert [] == check("timestamp", value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "2018-09-15T15:53:00",
        "2018-09-15",
        "2018-09-15 15:53:00+00:00",
        "20180915T155300Z",
        "2018-W37-6T15:53:00Z",
        "2018-09-15T15:53Z",
        "2018-09-15T15:53:00+0000",
        "2018-09-15T15:53:00+00:00\n",
        "2018-09-15T15:53:00,5Z",
        "1537026780",
        "\u0662018-09-15T15:53:00Z",
    ],
)
def test_other_forms_are_no_timestamps(value: str) -> None:
    """If a timestamp has another format or no offset, it is refused."""
    assert [f"timestamp: {ISO}"] == check("timestamp", value)


@pytest.mark.parametrize(
    "value", ["2018-02-30T00:00:00Z", "2018-13-01T00:00:00Z", "2018-01-01T25:00:00Z", "2018-01-01T00:00:00+24:00"]
)
def test_impossible_moments_are_no_timestamps(value: str) -> None:
    """If a timestamp has the right format but its date, time or offset cannot exist, the timestamp is refused."""
    (reason,) = check("timestamp", value)

    assert reason.startswith("timestamp: must be a real moment: ")


@pytest.mark.parametrize("value", ["79991234567", "+7 999 123-45-67", "+0123456", "+1234567890123456", "+", "+7\n"])
def test_phones_are_e164(value: str) -> None:
    """If a phone number is not a plus and 2 to 15 digits, of which the first is not 0, the number is refused."""
    assert ["phone: must be E.164, such as +79991234567"] == check("phone", value)


@pytest.mark.parametrize("value", ["ab.ru", "a@", "@b", "a b@c"])
def test_emails_have_two_halves(value: str) -> None:
    """If an e-mail address does not have one @ with text on both sides, it is refused."""
    assert ["email: must be an e-mail address"] == check("email", value)


@pytest.mark.parametrize("value", ["{}", [], 1, None])
def test_custom_data_is_an_object(value: object) -> None:
    """If `customData` is not a JSON object, it is refused."""
    (reason,) = check("customData", value)

    assert reason.startswith("customData: must be an object, not ")


def test_all_reasons_are_told() -> None:
    """If an event has several mistakes, there is a reason for each mistake."""
    event = {"productId": "1", "stockId": "", "colour": "red"}

    assert [
        "productId: must be an integer, not a string",
        "stockId: must not be empty",
        "colour: is no field of this event",
        "sessionExternalId: is missing",
    ] == check_event("view", event)


@pytest.mark.parametrize(("body", "kind"), [([], "an array"), ("view", "a string"), (None, "null"), (1, "an integer")])
def test_an_event_is_an_object(body: object, kind: str) -> None:
    """If an event is not a JSON object, it is refused."""
    assert [f"body: must be an object, not {kind}"] == check_event("view", body)


def test_a_batch_of_all_events_is_good() -> None:
    """If a batch has all events that have an envelope, also of different sessions, it is valid."""
    several = [{name: required | optional} for name, (required, optional) in CONTRACT.items() if name not in ALONE]

    assert [] == check_batch(several)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_an_event_without_an_envelope_is_refused_in_a_batch(name: str) -> None:
    """If no envelope is documented for an event, a batch that holds the event is refused."""
    required, _ = CONTRACT[name]
    reason = f"[1].{name}: has only its own endpoint, and no batch may hold it"

    assert [reason] == check_batch([{"view": CONTRACT["view"][0]}, {name: required}])
    assert [] == check_event(name, required)


def test_undocumented_fields_are_accepted_on_demand() -> None:
    """If `allow_extra` is set, a documented event may have other fields; its documented fields are still checked."""
    event = CONTRACT["view"][0] | {"link": {"name": "crm"}}

    assert [] == check_event("view", event, allow_extra=True) == check_batch([{"view": event}], allow_extra=True)
    assert ["productId: is missing"] == check_event("view", SESSION | {"a": 1}, allow_extra=True)
    assert ["[0].wish: is no event of the API"] == check_batch([{"wish": {}}], allow_extra=True)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ([], "body: must not be empty"),
        ({}, "body: must be an array, not an object"),
        ({"view": {}}, "body: must be an array, not an object"),
        ("x", "body: must be an array, not a string"),
        ([1], "[0]: must be an object, not an integer"),
        ([[]], "[0]: must be an object, not an array"),
        ([{}], "[0]: must have exactly one key, the event's name, not 0"),
        ([{"view": {}, "search": {}}], "[0]: must have exactly one key, the event's name, not 2"),
        ([{"View": {}}], "[0].View: is no event of the API"),
        ([{"visitorEvents": []}], "[0].visitorEvents: must be an object, not an array"),
        ([{"view": 1}], "[0].view: must be an object, not an integer"),
        ([{"x" * 51: {}}], f"[0].{'x' * 50}: is no event of the API"),
    ],
)
def test_a_batch_is_an_array_of_envelopes(batch: object, reason: str) -> None:
    """If a batch is empty, or not an array of objects with one event name each, the batch is refused."""
    assert [reason] == check_batch(batch)


def test_reasons_start_with_the_path() -> None:
    """If events of a batch are bad, each reason names the place in the batch, the event and the field."""
    good = {"view": CONTRACT["view"][0]}
    bad = {"view": SESSION | {"productId": "1"}}

    assert [
        "[1].view.productId: must be an integer, not a string",
        "[3].view.productId: must be an integer, not a string",
    ] == check_batch([good, bad, good, bad])


def test_reasons_are_capped() -> None:
    """If there are more than a thousand reasons, the first thousand are returned, and then "... and more"."""
    wrong: list[list[str]] = [
        check_batch([1] * 1_001),
        check_batch([1] * 1_000_000),
        check_event("groupView", SESSION | {"groupId": 1, "productIds": [""] * 1_000_000}),
        check_event("view", SESSION | {"productId": 1} | {str(number): 1 for number in range(100_000)}),
    ]

    assert [(1_001, "... and more")] * 4 == [(len(reasons), reasons[-1]) for reasons in wrong]
    assert 1_000 == len(check_batch([1] * 1_000))


def test_unknown_events_pass_if_allowed() -> None:
    """If `allow_unknown` is set, events with unknown names are valid; known events are still checked."""
    batch = [{"stepOnMoon": {"foot": "left"}}, {"view": {}}]

    assert [
        "[1].view.sessionExternalId: is missing",
        "[1].view.productId: is missing",
    ] == check_batch(batch, allow_unknown=True)


def test_unknown_events_are_objects_all_the_same() -> None:
    """If `allow_unknown` is set, an event with an unknown name must still be an object."""
    assert ["body: must be an object, not null"] == check_event("stepOnMoon", None, allow_unknown=True)
