"""Reads a broker's address and the options in the address, and hides the password in log messages.

The part after the question mark contains options of the relay and options of the broker's library. `Address.parse`
removes the relay's options, here ``stream`` and ``group``::

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
    """The name of a source's class, the library that the class imports, and the extra that installs the library."""

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
    """Return a source for a broker's address. The source is not connected yet.

    Args:
        url: ``redis://...``, ``kafka://...`` or ``nats://...``; see the source's `from_url` for its options.
        name: the relay's name at the broker; see the argument `name` of the source's `from_url`.

    Raises:
        ConfigurationError: the address is invalid, or the broker's library is not installed. The error's message does
            not show the address, because the address may contain a password.
    """
    # `urlsplit` removes line breaks and tabs without an error, so the text is checked first.
    check_texts(source=url)
    scheme, separator, _ = url.partition("://")
    kind = _KINDS.get(scheme) if separator else None
    if kind is None:
        raise ConfigurationError(f"the source must be an address that begins with one of {', '.join(_KINDS)}, then ://")
    if not installed(kind.library):
        raise ConfigurationError(
            f'this source needs {kind.library}, which is not installed: pip install "retailrocket-async[{kind.extra}]"'
        )
    # Only the library of this broker is imported, because the import of a library takes a good part of a second.
    relay: Any = importlib.import_module("retailrocket_async.relay")
    source: Source = getattr(relay, kind.source).from_url(url, name=name)
    return source


class Address(NamedTuple):
    """A source's address, split into the relay's options and the rest.

    Attributes:
        rest: the address without the relay's options.
        options: the names and values of the relay's options, without options that are not in the address.
    """

    rest: str
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str, *names: str) -> Self:
        """Split an address into the relay's options and the rest.

        Args:
            url: the address.
            names: the names of the relay's options.

        Raises:
            ConfigurationError: `url` is not an address, or one of the relay's options is empty or occurs twice.
        """
        try:
            parts = urlsplit(url)
            pairs = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            # `from None` hides the original error: its message quotes the address, which may contain a password.
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
        """Return the value of an option in seconds, or `default` if the address does not contain the option.

        Raises:
            ConfigurationError: the value is not a number.
        """
        try:
            return float(self.options.get(name, default))
        except ValueError:
            raise ConfigurationError(f"in the source's address {name} must be seconds") from None

    def flag(self, name: str, *, default: bool) -> bool:
        """Return True for the value ``yes``, False for ``no``, `default` if the address does not contain the option.

        Raises:
            ConfigurationError: the value is neither ``yes`` nor ``no``.
        """
        value = self.options.get(name, "yes" if default else "no")
        if value not in {"yes", "no"}:
            raise ConfigurationError(f"in the source's address {name} must be yes or no")
        return value == "yes"

    def split(self, library: str) -> SplitResult:
        """Return the parts of `rest`. Used for brokers whose library reads no options from an address.

        Args:
            library: the broker's name, for the error's message.

        Raises:
            ConfigurationError: the address contains an option that is not one of the relay's options.
        """
        parts = urlsplit(self.rest)
        if parts.query or parts.fragment:
            raise ConfigurationError(f"the source's address has an option that {library} has not")
        return parts


def account_of_environment() -> tuple[str | None, str | None]:
    """Return the broker's user and password from the environment; None in place of a variable that is not set."""
    return os.environ.get("RETAILROCKET_RELAY_USER"), os.environ.get("RETAILROCKET_RELAY_PASSWORD")


def without_secrets(text: str) -> str:
    """Return `text` with ``***`` in place of the user and the password in every address, for logs and messages."""
    return _USER.sub("//***@", text)
