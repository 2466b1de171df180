"""Which browsers the control side answers: those that show its own page, and not those that show another site.

Any site that a developer has open can make the browser send requests to this machine. A browser says so, and what is
no browser says nothing.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["refusal"]


def refusal(request: Request) -> str | None:
    """Return why *request* is not answered, None if it is."""
    host = request.headers.get("host", "")
    if _listens_to_itself(request) and not _means_this_machine(host):
        # A site whose name leads to this machine (DNS rebinding) is its own origin to the browser.
        return "the Host must be an IP address, localhost or a name without dots"
    if request.method == "GET":
        # No browser lets another site read the answer, and it changes nothing.
        return None
    if not _is_of_this_page(request, host):
        return "a page of another origin must not change anything here"
    return None


def _is_of_this_page(request: Request, host: str) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        # No page can forge it, and it holds behind a proxy too, where the origin has another name than the host.
        return site in ("same-origin", "none")
    # Older browsers, and those that came by an address without TLS that is not this machine's own.
    return request.headers.get("origin") in (None, f"{request.scope['scheme']}://{host}")


def _listens_to_itself(request: Request) -> bool:
    address, _ = request.scope.get("server") or ("", None)
    return _is_ip(address) and ip_address(address).is_loopback


def _means_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return "." not in name or name.endswith(".localhost") or _is_ip(name)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
