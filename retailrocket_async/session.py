"""Stores the visitor's session id in a cookie of the shop. The framework modules build on this module.

Request handlers use `session_id` of `retailrocket_async.fastapi`, `.starlette`, `.asgi` or `.aiohttp`.
"""

from __future__ import annotations

import re
from typing import Final

from retailrocket_async import CategoryView, ConfigurationError, EventValidationError, new_session_id

__all__ = ["DEFAULT_COOKIE", "Session", "checked_cookie_name"]

DEFAULT_COOKIE: Final = "retailrocket_session"
_YEAR: Final = 365 * 24 * 60 * 60


class Session:
    """The visitor's session in one request: read from the cookie, or created on the first use of `id`.

    Args:
        name: the cookie's name.
        value: the cookie's value; None if the request has no such cookie. A value that is not a
            valid session id (1-50 ASCII letters and digits) is ignored.
    """

    __slots__ = ("_id", "_name", "_new")

    def __init__(self, name: str, value: str | None) -> None:
        self._name = name
        self._id = value if value is not None and _is_session_id(value) else None
        self._new = False

    @property
    def id(self) -> str:
        """The session id, for `session_external_id`; created on the first use if the cookie has no valid id."""
        if self._id is None:
            self._id, self._new = new_session_id(), True
        return self._id

    def set_cookie(self, *, https: bool) -> str | None:
        """Return the value of ``Set-Cookie`` if the session is new and this is the first call, otherwise None.

        Args:
            https: whether the request came over TLS. If so, the browser will send the cookie only over TLS.
        """
        if not self._new:
            return None
        self._new = False
        secure = "; Secure" if https else ""
        return f"{self._name}={self._id}; HttpOnly; Max-Age={_YEAR}; Path=/; SameSite=Lax{secure}"


def checked_cookie_name(name: str) -> str:
    """Return `name` if it is a valid name of a cookie.

    Raises:
        ConfigurationError: `name` is not valid.
    """
    if type(name) is not str or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigurationError(f"name must be a cookie's name: ASCII letters, digits, - and _, not {name!r}")
    return name


def _is_session_id(value: str) -> bool:
    # The check constructs an event, so that the rule for session ids is written in one place only.
    try:
        CategoryView(session_external_id=value, category_id=0)
    except EventValidationError:
        return False
    return True
