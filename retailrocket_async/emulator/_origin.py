"""Refuses requests that a browser sends to the control side for a page of another site.

Any site that a developer has open can make the browser send requests to this machine. A browser names the site in a
header; other programs send no such header, and are answered.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["refusal"]


def refusal(request: Request) -> str | None:
    """Return why *request* is refused; None if it is answered."""
    host = request.headers.get("host", "")
    if _serves_loopback(request) and not _names_this_machine(host):
        # If a site's name resolves to this machine (DNS rebinding), the browser takes both for the same origin.
        return "the Host must be an IP address, localhost or a name without dots"
    if request.method == "GET":
        # A GET changes nothing, and browsers let no other site read the answer.
        return None
    if not _is_of_this_page(request, host):
        return "a page of another origin must not change anything here"
    return None


def _is_of_this_page(request: Request, host: str) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        # A page cannot forge it. It is also right behind a proxy, where the origin's name differs from the Host.
        return site in ("same-origin", "none")
    # Older browsers do not send it, and no browser does to a plain http address of another machine.
    return request.headers.get("origin") in (None, f"{request.scope['scheme']}://{host}")


def _serves_loopback(request: Request) -> bool:
    address, _ = request.scope.get("server") or ("", None)
    return _is_ip(address) and ip_address(address).is_loopback


def _names_this_machine(host: str) -> bool:
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
