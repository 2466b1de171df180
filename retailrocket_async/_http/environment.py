"""Reads from the environment which proxy and which certificates to use for one address.

httpx reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` (each in lower case, too), `SSL_CERT_FILE` and
`SSL_CERT_DIR`; Python's ssl reads `SSLKEYLOGFILE`. If a value is bad, httpx and ssl raise errors that look like a
broken connection and may contain a proxy's password. So this module reads the variables itself, by httpx's rules. If a
value is bad, this module raises an `EnvironmentUnusableError`. Its message names the variable and says what to write,
and never shows the value.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import logging
import os
import re
import ssl
import sys
from pathlib import Path
from typing import Final
from urllib.request import getproxies

import attrs
import httpx

from retailrocket_async._errors import brief
from retailrocket_async._http.reply import Reply
from retailrocket_async._runtime.foreign_code import write_log

logger = logging.getLogger("retailrocket_async")

_PROXY: Final = "write it as http://host:port"
_SCHEMES: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.\d+")
"""The pattern of the file names under which OpenSSL finds certificates in a directory, such as ``5ed36f99.0``."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
"""Error numbers of temporary failures, such as too many open files: they do not mean that a variable is wrong."""

_LASTING: Final = frozenset({501, 505})
"""HTTP statuses of 500 and above. If a proxy answers CONNECT with one of these statuses, a retry cannot help, because
the host is not a proxy for TLS."""

_PASSING: Final = frozenset({408, 425, 429})
"""HTTP statuses below 500. If a proxy answers CONNECT with one of these statuses, a retry may help."""


class EnvironmentUnusableError(Exception):
    """A variable of the environment, or the certificate file of certifi, cannot be used.

    The message names the variable and says what to write; the message never shows the value.
    """


@attrs.frozen
class Proxy:
    """The proxy for one address.

    Attributes:
        variable: the environment variable that names the proxy, as it is spelled, e.g. ``"https_proxy"``.
        address: the proxy's host and port.
        settings: the proxy for httpx; contains the user and the password.
    """

    variable: str
    address: str
    settings: httpx.Proxy = attrs.field(repr=False)


@attrs.frozen
class Environment:
    """The settings of the environment for one address.

    Attributes:
        context: the TLS context; contains the certificates by which servers are verified, or no certificates for an
            http address.
        proxy: the proxy to use; None for a direct connection.
    """

    context: ssl.SSLContext = attrs.field(repr=False)
    proxy: Proxy | None


class EnvironmentReader:
    """Finds the proxy and the certificates for one URL, and reads the environment again if a variable has changed.

    Args:
        url: the URL to which requests are sent.
        trusted: whether to use the proxy and the certificates that the environment names. If False, there is no proxy,
            and the certificates are certifi's.
    """

    def __init__(self, url: str, *, trusted: bool) -> None:
        self._url = url
        self._trusted = trusted
        self._read: tuple[int, Environment] | None = None
        self._warned = ""

    @property
    def proxy(self) -> Proxy | None:
        """The proxy that the last `read` found; None if there is no proxy, or nothing has been read yet."""
        return None if self._read is None else self._read[1].proxy

    def changed(self) -> bool:
        """Whether a variable has changed since the last successful `read`; False before the first `read`."""
        return self._read is not None and self._read[0] != _fingerprint()

    def read(self) -> Environment:
        """Return the settings of the environment.

        Blocks for tens of milliseconds to read the certificates, so call this method in a thread.

        Raises:
            EnvironmentUnusableError: a variable cannot be used.
        """
        fingerprint = _fingerprint()
        if self._read is not None and self._read[0] == fingerprint:
            return self._read[1]
        try:
            environment = self._environment()
        except EnvironmentUnusableError as fault:
            # Remove the traceback: its frames contain the values, and some tools print the variables of frames.
            raise fault.with_traceback(None) from None
        self._read = fingerprint, environment
        return environment

    def _environment(self) -> Environment:
        url = httpx.URL(self._url)
        proxy = self._proxy_for(url) if self._trusted else None
        if proxy is not None and proxy.settings.url.scheme == "https":
            # httpcore writes the protocols (ALPN) for the API into the TLS context that it uses for the API. These
            # protocols would be wrong for the proxy, so the connection to the proxy gets a TLS context of its own.
            proxy.settings.ssl_context = _context(trusted=True)
        # Plain http needs no certificates. So no certificates are read, and a bad `SSL_CERT_FILE` raises no error.
        tls = url.scheme == "https"
        context = _context(trusted=self._trusted) if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return Environment(context, proxy)

    def _proxy_for(self, url: httpx.URL) -> Proxy | None:
        values = getproxies()
        entries = [entry.strip() for entry in values.get("no", "").split(",")]
        if "*" in entries:
            return None
        # If NO_PROXY and the variable of a proxy name the same addresses, NO_PROXY wins, as in httpx.
        rules: dict[httpx.URL, Proxy | None] = {}
        for scheme in ("http", "https", "all"):
            if value := values.get(scheme):
                found = _proxy(_variable(scheme), value)
                del value
                if isinstance(found, str):
                    raise EnvironmentUnusableError(found)
                rules[httpx.URL(f"{scheme}://")] = found
        exceptions = [(entry, _pattern(entry)) for entry in entries if entry]
        self._warn([entry for entry, pattern in exceptions if pattern is None])
        rules |= {pattern: None for _, pattern in exceptions if pattern is not None}
        return next((rules[pattern] for pattern in sorted(rules, key=_rank) if _matches(pattern, url)), None)

    def _warn(self, unread: list[str]) -> None:
        """Log a warning with the entries of NO_PROXY that cannot be read, unless the last warning was the same."""
        # An entry may be a URL with a password before the @, so only the text after the @ is shown.
        shown = ", ".join(brief(entry.rpartition("@")[2]) for entry in unread)
        if unread and shown != self._warned:
            self._warned = shown
            write_log(
                logger,
                logging.WARNING,
                "%s: left out %s, which cannot be read as a host: write host names or single addresses, separated by "
                "commas; networks of IPv6 are not supported",
                _variable("no"),
                shown,
            )


def refused_by_proxy(answer: str, proxy: Proxy | None, address: str | None) -> Reply:
    """Return the reply for a proxy that refused to connect to the API.

    Args:
        answer: the text of httpx's `ProxyError`. The text begins with the status of the answer to CONNECT, or is the
            message for the answer of a SOCKS proxy.
        proxy: the proxy that the environment names; None if the caller's own client made the request.
        address: host and port of the proxy; None if the address is not known.
    """
    where = f"the proxy {address}" if address else "the proxy"
    variable = proxy.variable if proxy is not None else "the proxy of your http_client"
    status = int(answer[:3]) if answer[:3].isascii() and answer[:3].isdigit() else None
    if status == 407:
        return Reply(status=407, detail=asks_for_credentials(proxy, address), sent=False, proxy=address)
    if status is None and answer.startswith(("Invalid username", "Requested ")):
        detail = f"{where} does not take this user and password: correct them in {variable}"
        return Reply(failure="proxy", detail=detail, sent=False, proxy=address)
    if status is None:
        return Reply(failure="connect", detail=f"refused by {where}", sent=False, proxy=address)
    if status in _PASSING or (status >= 500 and status not in _LASTING):
        return Reply(failure="connect", detail=f"HTTP {status} from {where} to CONNECT", sent=False, proxy=address)
    detail = (
        f"{where} refuses to connect to the API (HTTP {status} to CONNECT): have it allow the API's host, or correct "
        f"{variable}"
    )
    return Reply(failure="proxy", detail=detail, sent=False, proxy=address)


def asks_for_credentials(proxy: Proxy | None, address: str | None) -> str:
    """Return the message for a proxy that answers 407. The message says to write credentials into the proxy's URL.

    Args:
        proxy: the proxy that the environment names; None if the caller's own client made the request.
        address: host and port of the proxy; None if the address is not known.
    """
    where = f"the proxy {address}" if address else "the proxy on the way"
    variable = f"{proxy.variable}=" if proxy is not None else "its URL, as "
    scheme = proxy.settings.url.scheme if proxy is not None else "http"
    return (
        f"{where} asks for credentials: write them into {variable}{scheme}://user:password@{address or 'host:port'}, "
        "percent-encoded"
    )


def address_of(url: object) -> str | None:
    """Return host and port of a proxy's URL (`httpx.URL` or `httpcore.URL`), or None if the URL has no host."""
    host, port, scheme = (getattr(url, name, None) for name in ("host", "port", "scheme"))
    if isinstance(host, bytes) and isinstance(scheme, bytes):
        host, scheme = host.decode("ascii", "replace"), scheme.decode("ascii", "replace")
    if not isinstance(host, str) or not host:
        return None
    port = port or _SCHEMES.get(str(scheme), 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fingerprint() -> int:
    # Return only a hash, because the values may contain passwords and the result is stored.
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
    return hash((tuple(sorted(getproxies().items())), *map(os.environ.get, names)))


def _variable(scheme: str) -> str:
    """Return the name of the proxy variable for `scheme`, as the environment spells the name, e.g. ``"https_proxy"``.

    The name in lower case comes first, because urllib prefers the value of that variable.
    """
    lower = f"{scheme}_proxy"
    for name in (lower, lower.upper(), *os.environ):
        if name.lower() == lower and os.environ.get(name):
            return name
    # No variable is set: on Windows and macOS, urllib also reads the proxy from the settings of the system.
    return f"the system's setting for {lower.upper()}"


def _proxy(variable: str, value: str) -> Proxy | str:  # noqa: PLR0911 - a sentence for each rule
    """Return the proxy that `value` names, or, if `value` is bad, a message that says what is wrong."""
    if not value.isprintable():
        return f"{variable} holds characters that no URL has, such as a line break: {_PROXY}"
    text = value if "://" in value else f"http://{value}"
    scheme = text.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        return f"{variable} does not begin with http://, https:// or socks5://: {_PROXY}"
    try:
        settings = httpx.Proxy(text)
        host, port = settings.url.host, settings.url.port
        credentials = settings.raw_auth
    except Exception:  # noqa: BLE001 - the error may hold the password
        return f"{variable} is no URL: {_PROXY}; in a user or password write @ : / ? # percent-encoded"
    del credentials
    if not host or "%" in host or " " in host:
        return f"{variable} names no host: {_PROXY}"
    if port is not None and not 1 <= port <= 65_535:
        return f"{variable} must have a port from 1 to 65535: {_PROXY}"
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return f"{variable} names a SOCKS proxy, whose package is missing: pip install httpx[socks], or {_PROXY}"
    return Proxy(variable, address_of(settings.url) or host, settings)


def _pattern(entry: str) -> httpx.URL | None:
    """Return the URL pattern that httpx makes of an entry of `NO_PROXY`, or None if httpx cannot read the entry."""
    if any(letter.isspace() for letter in entry):
        return None
    if "://" in entry:
        text = entry
    elif _is_address(ipaddress.IPv4Address, entry) or entry.lower() == "localhost":
        text = f"all://{entry}"
    elif _is_address(ipaddress.IPv6Address, entry):
        text = f"all://[{entry}]"
    else:
        text = f"all://*{entry}"
    try:
        return httpx.URL(text)
    except Exception:  # noqa: BLE001 - `InvalidURL`, or a host that cannot be encoded
        return None


def _is_address(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], entry: str) -> bool:
    try:
        kind(entry.split("/", maxsplit=1)[0])
    except ValueError:
        return False
    return True


def _rank(pattern: httpx.URL) -> tuple[bool, int, int]:
    """Return the sort key of a URL pattern. The key sorts the most specific patterns first, as httpx does."""
    host = "" if pattern.host == "*" else pattern.host
    scheme = "" if pattern.scheme == "all" else pattern.scheme
    return pattern.port is None, -len(host), -len(scheme)


def _matches(pattern: httpx.URL, url: httpx.URL) -> bool:
    """Whether a URL pattern matches `url`, by the rules of httpx."""
    host = pattern.host
    if pattern.scheme not in ("", "all", url.scheme) or pattern.port not in (None, url.port):
        return False
    if host.startswith("*."):
        return url.host.endswith(host[1:]) and url.host != host[1:]
    if host.startswith("*"):
        return host == "*" or url.host == host[1:] or url.host.endswith(f".{host[1:]}")
    return host in ("", url.host)


def _context(*, trusted: bool) -> ssl.SSLContext:
    """Return a TLS context with the certificates that the environment names, or else with those of certifi.

    Args:
        trusted: whether to use the environment; if False, the certificates are certifi's.

    Raises:
        EnvironmentUnusableError: a variable, or the file of certifi, cannot be used.
    """
    file = os.environ.get("SSL_CERT_FILE") if trusted else None
    folder = os.environ.get("SSL_CERT_DIR") if trusted and not file else None
    if folder and (complaint := _complaint_of_folder(folder)):
        raise EnvironmentUnusableError(complaint)
    try:
        if file or folder:
            context = ssl.create_default_context(cafile=file or None, capath=folder)
        else:
            context = httpx.create_ssl_context(trust_env=False)
        complaint = None if folder or context.cert_store_stats()["x509"] else "holds no certificate"
    except ssl.SSLError:
        # This clause must come before the one for `OSError`, because `OSError` is the base class of `ssl.SSLError`.
        complaint = "holds no certificate in PEM form"
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise
        if keylog := _complaint_of_keylog():
            raise EnvironmentUnusableError(keylog) from None
        complaint = f"cannot be read ({_words(error)})"
    else:
        if complaint is None:
            return context
    if file:
        raise EnvironmentUnusableError(
            f"SSL_CERT_FILE {complaint}: write the path of a file of certificates in PEM form, or unset it"
        )
    raise EnvironmentUnusableError(
        f"the certificates of the package certifi cannot be used (the file {complaint}): install certifi again, or "
        "write the path of a file of certificates into SSL_CERT_FILE"
    )


def _complaint_of_folder(value: str) -> str | None:
    """Return what is wrong with the value of `SSL_CERT_DIR`, or None if a directory in it contains certificates.

    The value may name several directories. OpenSSL itself raises no error for a bad value.
    """
    advice = "write the path of a directory that `openssl rehash` has prepared, or unset it"
    failure = "names no directory"
    for folder in filter(None, value.split(os.pathsep)):
        try:
            if any(_HASHED.fullmatch(entry.name) for entry in Path(folder).iterdir()):
                return None
            failure = "holds no certificate that OpenSSL can find"
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _EXHAUSTED:
                raise
            failure = f"cannot be read ({_words(error)})"
    return f"SSL_CERT_DIR {failure}: {advice}"


def _complaint_of_keylog() -> str | None:
    path = os.environ.get("SSLKEYLOGFILE")
    if not path or sys.flags.ignore_environment:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = path
    except (OSError, ValueError) as error:
        return (
            f"SSLKEYLOGFILE names a file that cannot be written ({_words(error)}): write the path of one that can, or "
            "unset it"
        )
    return None


def _words(error: Exception) -> str:
    """Return the system's text for an error, which does not contain the path, or else the name of the error's type."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
