"""Checks that the base URL is valid and that the API key may be sent to its host."""

from __future__ import annotations

import ipaddress
import os
from typing import Final, cast
from urllib.parse import unquote

import httpx

from retailrocket_async._errors import ConfigurationError, type_name
from retailrocket_async._runtime.setting_text import has_blanks, has_surrogates

DEFAULT_BASE_URL: Final = "https://apptracking.retailrocket.net/1.0/"
TEST_MODE: Final = "RETAILROCKET_TEST_MODE"
"""Environment variable: while its value is anything but 0 or empty, clients send requests only to this machine."""

_MAX_URL: Final = 8_000
"""Length in characters that every server should accept (RFC 9110, 4.1); httpx raises an error above 65,536."""


def checked_base_url(base_url: str, *, allow_insecure: bool) -> str:
    """Return `base_url` with a slash at its end, after checking that the key may be sent there.

    Args:
        base_url: the URL that the caller gave.
        allow_insecure: whether to allow plain ``http://`` to other machines than this one.

    Raises:
        ConfigurationError: `base_url` is not an absolute http(s) URL, has more than 8,000 characters with the slash at
            its end, or contains a query, a fragment or a user. Also raised if the URL leads to another host, and either
            `TEST_MODE` is set, or the URL begins with ``http://`` and `allow_insecure` is False.
    """
    complaint = _url_complaint(base_url, allow_insecure=allow_insecure)
    if complaint:
        # The traceback of an error refers to this frame, and the URL may contain credentials.
        del base_url
        raise ConfigurationError(complaint)
    text = str(httpx.URL(base_url))
    return text if text.endswith("/") else text + "/"


def _unreadable(base_url: object) -> str | None:
    """Return what is wrong with `base_url`, or None if `base_url` is a URL that httpx can read."""
    # White space is refused here, because httpx would strip the white space, or encode it into the path of every
    # request.
    blanks = "base_url must not hold white space or control characters, nor their encoded forms: strip() it"
    if isinstance(base_url, str) and has_surrogates(base_url):
        return f"base_url must be a URL like {DEFAULT_BASE_URL}, without lone surrogates"
    if isinstance(base_url, str) and has_blanks(base_url):
        return blanks
    try:
        url = httpx.URL(cast("str", base_url))
        # This line raises ValueError if the host or the path cannot be encoded.
        text, _, _ = str(url), url.host, url.port
    except TypeError:
        return f"base_url must be a URL like {DEFAULT_BASE_URL}, not {type_name(base_url)}"
    except (httpx.InvalidURL, ValueError):
        return f"base_url must be a URL like {DEFAULT_BASE_URL}"
    return blanks if has_blanks(unquote(text)) else None


def _url_complaint(base_url: str, *, allow_insecure: bool) -> str | None:  # noqa: PLR0911 - a sentence for each rule
    """Return the rule that a base URL breaks, or None if the URL is valid."""
    if unreadable := _unreadable(base_url):
        return unreadable
    url = httpx.URL(base_url)
    text, host, port = str(url), url.host, url.port
    if url.scheme not in ("http", "https") or not host:
        return f"base_url must begin with https:// and name a host, like {DEFAULT_BASE_URL}"
    if port is not None and not 1 <= port <= 65_535:
        return "base_url must have a port from 1 to 65535, or none"
    # Search the text, because an empty query or fragment must also be found: a path that is appended after a "?" or "#"
    # would become a part of the query or fragment.
    if "?" in text or "#" in text or url.userinfo:
        return "base_url must have no query, fragment or user: credentials are api_key, partner_id"
    if len(text.removesuffix("/")) >= _MAX_URL:
        return f"base_url must be at most {_MAX_URL:,} characters long, the slash at its end counted"
    if is_loopback(host):
        return None
    if os.environ.get(TEST_MODE, "0") not in ("", "0"):
        return (
            f"base_url must be on this host while {TEST_MODE} is set, which keeps tests from the real API: give the "
            "code a RecordingClient of retailrocket_async.testing, or the base_url of an emulator"
        )
    if url.scheme == "http" and not allow_insecure:
        return (
            "base_url must begin with https://: over plain http:// anyone on the way can read the api_key; "
            "for a test host of your own say allow_insecure_http=True"
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether a host name or an IP address refers to this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
