"""Texts in settings: white space is refused, and errors name the type of a value that they hide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
import redis.asyncio

from retailrocket_async import AsyncTrackingClient, ConfigurationError, EventValidationError, SetContact, SqliteSpool
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.keyed_url import KeyedURL
from retailrocket_async.redis import RedisLimiter
from retailrocket_async.relay import KafkaTopic, NatsSubject, RedisStream, RelaySettings, source_from_url

if TYPE_CHECKING:
    from collections.abc import Callable

BLANKS = [
    " ",
    "\t",
    "\n",
    "\r",
    "\x0b",
    "\x00",
    "\x7f",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2003",
    "\u2028",
    "\u200b",
    "\ufeff",
]
REDIS = redis.asyncio.Redis()


class SecretStr:
    """A class like pydantic's `SecretStr`, which is not a `str`."""

    def get_secret_value(self) -> str:
        """Return the secret text."""
        return "secret"


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_blanks_in_the_address(blank: str) -> None:
    """If the address contains white space anywhere, percent-encoded or not, an error is raised."""
    encoded = "".join(f"%{byte:02X}" for byte in blank.encode())
    addresses = [
        f"{blank}https://shop.test/1.0/",
        f"https://shop{blank}.test/1.0/",
        f"https://shop.test/1{blank}0/",
        f"https://shop.test/1.0/{blank}",
        f"https://shop.test/1.0{encoded}",
    ]

    for address in addresses:
        with pytest.raises(ConfigurationError, match=r"^base_url must "):
            AsyncTrackingClient("key", "shop", base_url=address)


def test_blanks_in_a_parsed_address() -> None:
    """If httpx has already percent-encoded white space in the address, an error is still raised."""
    with pytest.raises(ConfigurationError, match="white space"):
        AsyncTrackingClient("key", "shop", base_url=httpx.URL("https://shop.test/1 0"))  # type: ignore[arg-type]


def test_an_address_in_other_letters() -> None:
    """If the address contains letters of any alphabet, it is accepted."""
    client = AsyncTrackingClient("key", "shop", base_url="https://магазин.рф/путь")

    assert "base_url='https://xn--" in repr(client)


TAKERS: dict[str, Callable[[str], object]] = {
    "api_key": lambda text: AsyncTrackingClient(text, "shop"),
    "partner_id": lambda text: AsyncTrackingClient("key", text),
    "source": lambda text: source_from_url(f"redis://h:1/0?stream=s&group=g{text}", name="n"),
    "source of settings": lambda text: RelaySettings(source=f"redis://h{text}"),
    "limiter": lambda text: RelaySettings(source="redis://h", limiter=f"redis://h{text}"),
    "name": lambda text: RelaySettings(source="redis://h", name=f"n{text}"),
    "host": lambda text: RelaySettings(source="redis://h", health_host=f"127.0.0.1{text}"),
    "servers of NATS": lambda text: NatsSubject(f"nats://h:1{text}", "s"),
    "subject": lambda text: NatsSubject("nats://h:1", f"s{text}"),
    "servers of Kafka": lambda text: KafkaTopic(f"h:1{text}", "t"),
    "topic": lambda text: KafkaTopic("h:1", f"t{text}"),
    "stream": lambda text: RedisStream(REDIS, f"s{text}"),
    "limiter's name": lambda text: RedisLimiter(REDIS, name=f"n{text}"),
}


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
@pytest.mark.parametrize("take", [pytest.param(take, id=name) for name, take in TAKERS.items()])
def test_blanks_in_a_setting(take: Callable[[str], object], blank: str) -> None:
    """If a setting ends in white space, for example a line break from a file, an error is raised."""
    with pytest.raises(ConfigurationError, match="must not hold white space"):
        take(blank)


def test_spaces_in_names() -> None:
    """If a Redis key or a relay's name contains spaces between words, it is accepted."""
    RedisStream(REDIS, "events of the shop")

    assert RelaySettings(source="redis://h", name="relay of the shop").name == "relay of the shop"


@pytest.mark.parametrize("path", ["spool\x00", "spool\n", "\tspool"])
def test_control_characters_in_the_path_of_a_spool(path: str) -> None:
    """If a spool's path contains a NUL or a line break, an error is raised."""
    with pytest.raises(ConfigurationError, match="control characters"):
        SqliteSpool(path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(5, "int"), (b"key", "bytes"), (None, "NoneType"), (SecretStr(), r"SecretStr: .*get_secret_value\(\)")],
)
@pytest.mark.parametrize("setting", ["api_key", "partner_id", "base_url"])
def test_the_type_of_a_setting(setting: str, value: object, kind: str) -> None:
    """If a setting has a wrong type, the error names the type, and says how to unwrap a secret such as `SecretStr`."""
    settings = {"api_key": "key", "partner_id": "shop", setting: value}

    with pytest.raises(ConfigurationError, match=rf"^{setting} must be .*, not {kind}"):
        AsyncTrackingClient(**settings)  # type: ignore[arg-type]


def test_a_surrogate_in_the_key() -> None:
    """If the key contains a lone surrogate, the error says that lone surrogates are not allowed."""
    with pytest.raises(ConfigurationError, match=r"^api_key must not contain a lone surrogate"):
        AsyncTrackingClient("k\udcff", "shop")


@pytest.mark.parametrize("field", ["session_external_id", "contact_external_id", "email", "phone", "custom_data"])
def test_the_type_of_a_personal_value(field: str) -> None:
    """If a personal value has a wrong type, the error names the type but not the value."""
    fields = {"session_external_id": "a", "contact_external_id": "c"}

    for value, kind in ((5, "int"), (b"x", "bytes"), (SecretStr(), r"SecretStr.*get_secret_value\(\)")):
        if (field, value) == ("custom_data", 5) or field != "custom_data":
            with pytest.raises(EventValidationError, match=rf"^setContact\.{field} .*, not {kind}"):
                SetContact(**{**fields, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["session_external_id", "contact_external_id", "email", "phone"])
def test_a_surrogate_in_a_personal_value(field: str) -> None:
    """If a personal value contains a lone surrogate, the error says this, but does not show the value."""
    fields = {"session_external_id": "a", "contact_external_id": "c", field: "a\ud800@b"}

    with pytest.raises(EventValidationError, match=r"contains a lone surrogate$"):
        SetContact(**fields)


def test_the_key_is_in_one_part_of_the_address() -> None:
    """If a request's URL is read, only `raw_path` contains the key; `raw` and copies of the URL do not."""
    url = KeyedURL("https://shop.test/1.0/view", Credentials("THE-KEY", "shop"))
    with pytest.warns(UserWarning, match="deprecated"):
        raw = url.raw

    shown = [raw, str(url), repr(url), url.query, url.params, url.copy_with(path="/x").raw_path, url.join("x").raw_path]
    assert "THE-KEY" not in repr(shown)
    assert b"THE-KEY" in url.raw_path
