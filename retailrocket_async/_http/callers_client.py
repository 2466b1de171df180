"""Reads settings of an `http_client` that the caller passes.

httpx has no public names for these settings, so private attributes are read. If an attribute is missing, for example
because the client has a transport of another library, the setting is unknown.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, cast

import httpx

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._http.environment import address_of

if TYPE_CHECKING:
    from retailrocket_async._http.reply import FailureKind


def check_verified(http_client: object, base_url: str) -> None:
    """Refuse a caller's client that does not verify TLS certificates: an attacker's server could then get the key.

    A transport that is not from httpx cannot be checked and is accepted.

    Raises:
        ConfigurationError: TLS verification is off in the transport that the client uses for `base_url`.
    """
    if not base_url.startswith("https:"):
        return
    context = getattr(getattr(_transport_for(http_client, base_url), "_pool", None), "_ssl_context", None)
    if isinstance(context, ssl.SSLContext) and not (context.verify_mode and context.check_hostname):
        raise ConfigurationError(
            "http_client must verify TLS certificates and host names, or anyone on the way can read the api_key: leave "
            "verify=False out; for a test host of your own say allow_insecure_http=True"
        )


def proxy_address(http_client: object, base_url: str) -> str | None:
    """Return host and port of the proxy that a caller's client uses for `base_url`; None if no proxy is known."""
    try:
        return address_of(cast("Any", _transport_for(http_client, base_url))._pool._proxy_url)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - a caller's client may be of any make
        return None


def unconnected_kind(http_client: object, base_url: str) -> FailureKind:
    """Return the failure of a request whose time-out passes before the request has begun to connect."""
    return "pool" if isinstance(_transport_for(http_client, base_url), httpx.AsyncHTTPTransport) else "timeout"


def _transport_for(http_client: object, base_url: str) -> object:
    """Return the transport that a client uses for `base_url`; None if the transport is not known."""
    transport_for = getattr(http_client, "_transport_for_url", None)
    return transport_for(httpx.URL(base_url)) if callable(transport_for) else None
