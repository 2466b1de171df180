"""What can be seen of a caller's own HTTP client.

httpx has no public names for it, so this reads private attributes. If they are missing, because the client or its
transport is of another make, the answer is "not known".
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
    """Refuse a caller's client that would send the key to a server that only claims to be `base_url`.

    A transport that is not of httpx cannot be checked, and passes.

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
    """Return host and port of the proxy that a caller's client uses for `base_url`; None if none is known."""
    try:
        return address_of(cast("Any", _transport_for(http_client, base_url))._pool._proxy_url)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - a caller's client may be of any make
        return None


def unconnected_kind(http_client: object, base_url: str) -> FailureKind:
    """Return the kind of failure if a request's time is up before a connection was even begun."""
    return "pool" if isinstance(_transport_for(http_client, base_url), httpx.AsyncHTTPTransport) else "timeout"


def _transport_for(http_client: object, base_url: str) -> object:
    """Return the transport that a client uses for `base_url`; None if it is not known."""
    transport_for = getattr(http_client, "_transport_for_url", None)
    return transport_for(httpx.URL(base_url)) if callable(transport_for) else None
