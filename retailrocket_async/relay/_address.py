"""A broker's address: it names the source and its options, and logs show it without its password.

The part behind the question mark holds our options and those of the broker's library. Ours are taken out::

    redis://:secret@redis:6379/0?stream=events&group=relay&socket_keepalive=yes
"""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import installed
from retailrocket_async._runtime.setting_text import check_texts

if TYPE_CHECKING:
    from retailrocket_async.relay._source import Source

_USER = re.compile(r"//[^/?#\s]*@")


class _Kind(NamedTuple):
    """The class of a source, and the library and the extra that it needs."""

    source: str
    library: str
    extra: str


_REDIS = _Kind("RedisStreamSource", "redis", "redis")
_KAFKA = _Kind("KafkaSource", "aiokafka", "kafka")
_NATS = _Kind("NatsSource", "nats", "nats")
_KINDS = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "unix": _REDIS,
    "kafka": _KAFKA,
    "kafkas": _KAFKA,
    "nats": _NATS,
    "tls": _NATS,
}


def source_from_url(url: str, *, name: str) -> Source:
    """Return the source that a broker's address names; it is not open.

    Args:
        url: ``redis://...``, ``kafka://...`` or ``nats://...``; see the source's `from_url` for its options.
        name: the relay's name at the broker; see the source.

    Raises:
        ConfigurationError: an address that cannot work, or the library for its broker is not installed; the
            message does not show the address, which may hold a password.
    """
    # `urlsplit` drops line breaks and tabs in silence.
    check_texts(source=url)
    scheme, separator, _ = url.partition("://")
    kind = _KINDS.get(scheme) if separator else None
    if kind is None:
        raise ConfigurationError(f"the source must be an address that begins with one of {', '.join(_KINDS)}, then ://")
    if not installed(kind.library):
        raise ConfigurationError(
            f'this source needs {kind.library}, which is not installed: pip install "retailrocket-async[{kind.extra}]"'
        )
    # Only the broker that is used, as each library takes a good part of a second to import.
    relay: Any = importlib.import_module("retailrocket_async.relay")
    source: Source = getattr(relay, kind.source).from_url(url, name=name)
    return source


class Address(NamedTuple):
    """A source's address, taken apart.

    Attributes:
        rest: the address without our options.
        options: our options by name, those that it has.
    """

    rest: str
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str, *names: str) -> Self:
        """Take an address apart.

        Args:
            url: the address.
            names: the names of our options.

        Raises:
            ConfigurationError: it is no address, or an option is empty or there twice.
        """
        try:
            parts = urlsplit(url)
            pairs = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            # Without its cause, which quotes the address.
            raise ConfigurationError("the source's address is malformed") from None
        options: dict[str, str] = {}
        for name, value in pairs:
            if name in names:
                if not value or name in options:
                    raise ConfigurationError(f"the source's option {name} must be there once, and not empty")
                options[name] = value
        query = urlencode([(name, value) for name, value in pairs if name not in names])
        return cls(parts._replace(query=query).geturl(), options)

    def seconds(self, name: str, default: float) -> float:
        """Return an option that is a number of seconds.

        Raises:
            ConfigurationError: it is no number.
        """
        try:
            return float(self.options.get(name, default))
        except ValueError:
            raise ConfigurationError(f"in the source's address {name} must be seconds") from None

    def flag(self, name: str, *, default: bool) -> bool:
        """Return an option that is yes or no.

        Raises:
            ConfigurationError: it is neither.
        """
        value = self.options.get(name, "yes" if default else "no")
        if value not in {"yes", "no"}:
            raise ConfigurationError(f"in the source's address {name} must be yes or no")
        return value == "yes"

    def split(self, library: str) -> SplitResult:
        """Return the parts of an address whose library has no options of its own.

        Raises:
            ConfigurationError: there is an option that is not ours.
        """
        parts = urlsplit(self.rest)
        if parts.query or parts.fragment:
            raise ConfigurationError(f"the source's address has an option that {library} has not")
        return parts


def account_of_environment() -> tuple[str | None, str | None]:
    """Return the broker's user and password from the environment variables; None for one that is not set."""
    return os.environ.get("RETAILROCKET_RELAY_USER"), os.environ.get("RETAILROCKET_RELAY_PASSWORD")


def without_secrets(text: str) -> str:
    """Return `text` for logs and messages: without the user and the password of every address in it."""
    return _USER.sub("//***@", text)
