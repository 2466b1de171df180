"""Keeps the key and a proxy's password out of the log records of the HTTP libraries."""

from __future__ import annotations

import logging
from typing import Final

_CODED: Final = ("Encoded header block", "Decoding ")
"""How the records of HTTP/2's header coder begin that print headers in a coded form, which anybody can decode."""

_LOGGERS: Final = ("hpack.hpack", "hpack.table", "httpcore.http11", "httpcore.http2", "httpx")
"""Loggers that may print a secret: HTTP/2's header coder always, the others if an answer repeats the request."""


class _NoSecrets(logging.Filter):
    """Drops the records in which a library prints a request's query or a proxy's password."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        # Some servers and proxies repeat the request in their answer, in headers or in the status line.
        return "apiKey" not in message and "basic " not in message.lower() and not message.startswith(_CODED)


def filter_secrets() -> None:
    """Add the filter to the loggers of the HTTP libraries, once."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _NoSecrets) for present in logger.filters):
            logger.addFilter(_NoSecrets())
