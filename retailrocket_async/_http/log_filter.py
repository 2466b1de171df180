"""Keeps the key and a proxy's password out of the log records of the HTTP libraries."""

from __future__ import annotations

import logging
from typing import Final

_CODED: Final = ("Encoded header block", "Decoding ")
"""How the log messages of hpack, HTTP/2's header coder, begin if they contain encoded headers, which anybody can
decode."""

_LOGGERS: Final = ("hpack.hpack", "hpack.table", "httpcore.http11", "httpcore.http2", "httpx")
"""Names of the loggers that may print a secret. The loggers of hpack may print a secret for every request; the other
loggers print a secret only if an answer repeats the request."""


class _NoSecrets(logging.Filter):
    """Drops the log records that contain a proxy's password, or the query of a request, which contains the key."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        # Some servers and proxies repeat the request in the headers or the status line of their answer. The libraries
        # log the headers and the status line.
        return "apiKey" not in message and "basic " not in message.lower() and not message.startswith(_CODED)


def filter_secrets() -> None:
    """Add a `_NoSecrets` filter to each logger of the HTTP libraries, unless the logger has such a filter already."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _NoSecrets) for present in logger.filters):
            logger.addFilter(_NoSecrets())
