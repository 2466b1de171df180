"""A broker's address: which source it means, what it says beside the address, and what may be shown of it.

The part behind the question mark holds our options and the library's own; ours are taken out::

    redis://:secret@redis:6379/0?stream=events&group=relay&socket_keepalive=yes
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import installed
from retailrocket_async._runtime.setting_text import check_texts

if TYPE_CHECKING:
    from retailrocket_async.relay._source import Source

_USER = re.compile(r"//[^/?#\s]*@")


class _Kind(NamedTuple):
    """The class of a source, and what it needs."""

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
    """Return the source that a broker's address names, not open.

    Args:
        url: ``redis://...``, ``kafka://...`` or ``nats://...``; see the source's `from_url` for its options.
        name: what the broker knows this relay by; see the source.

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
    # Only the broker that is used: each of their libraries takes a good part of a second.
    relay: Any = importlib.import_module("retailrocket_async.relay")
    source: Source = getattr(relay, kind.source).from_url(url, name=name)
    return source


def split_url(url: str, *options: str) -> tuple[str, dict[str, str]]:
    """Return an address without the named options, and those of them that it has.

    Raises:
        ConfigurationError: no address, or an option that is empty or there twice.
    """
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        # Without its cause, which quotes the address.
        raise ConfigurationError("the source's address is malformed") from None
    ours: dict[str, str] = {}
    for option, value in pairs:
        if option in options:
            if not value or option in ours:
                raise ConfigurationError(f"the source's option {option} must be there once, and not empty")
            ours[option] = value
    rest = urlencode([(option, value) for option, value in pairs if option not in options])
    return parts._replace(query=rest).geturl(), ours


def without_secrets(text: str) -> str:
    """Return `text` with who logs in cut out of every address in it: for logs and messages."""
    return _USER.sub("//***@", text)
