"""Refuses requests that a browser sends to the control side on behalf of a page of another site.

Any site that a developer has open can make the browser send requests to this machine. A browser names the site in a
header. Programs that are not browsers do not send this header, so requests from such programs are answered.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["refusal"]


def refusal(request: Request) -> str | None:
    """Return the reason for which *request* is refused, or None if the request may be answered."""
    host = request.headers.get("host", "")
    if _serves_loopback(request) and not _names_this_machine(host):
        # The name of a foreign site may resolve to this machine (DNS rebinding). A browser would then consider the
        # emulator as a part of the foreign site, and let the site's pages read the answers.
        return "the Host must be an IP address, localhost or a name without dots"
    if request.method == "GET":
        # A GET changes nothing, and a browser does not let a page of another site read the answer.
        return None
    if not _is_of_this_page(request, host):
        return "a page of another origin must not change anything here"
    return None


def _is_of_this_page(request: Request, host: str) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        # A page cannot forge this header. If a proxy is in front of the emulator, the page's origin may differ from the
        # Host, but this header is still right.
        return site in ("same-origin", "none")
    # Older browsers do not send Sec-Fetch-Site, and no browser sends this header to an http:// address of another
    # machine. So the Origin header decides.
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
