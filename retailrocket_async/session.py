"""The visitor's session, in a cookie of the shop: what all frameworks share.

A handler asks for it with the `session_id` of `retailrocket_async.fastapi`, `.starlette`, `.asgi` or `.aiohttp`.
"""

from __future__ import annotations

import re
from typing import Final

from retailrocket_async import CategoryView, ConfigurationError, EventValidationError, new_session_id

__all__ = ["DEFAULT_COOKIE", "Session", "checked_cookie_name"]

DEFAULT_COOKIE: Final = "retailrocket_session"
_YEAR: Final = 365 * 24 * 60 * 60


class Session:
    """The session of one request's visitor: the cookie's, or a new one where somebody asks for it.

    Args:
        name: the cookie's name.
        value: what the browser sent, None where it sent nothing. What is no id of a session by the API's rule, 1-50
            ASCII letters and digits, counts as nothing.
    """

    __slots__ = ("_id", "_name", "_new")

    def __init__(self, name: str, value: str | None) -> None:
        self._name = name
        self._id = value if value is not None and _is_session_id(value) else None
        self._new = False

    @property
    def id(self) -> str:
        """The id for `session_external_id`, the same however often it is asked for."""
        if self._id is None:
            self._id, self._new = new_session_id(), True
        return self._id

    def set_cookie(self, *, https: bool) -> str | None:
        """Return the value of the header ``Set-Cookie`` for a new session, the first time; else None.

        Args:
            https: whether the request came over TLS: then the browser keeps the cookie for such requests alone.
        """
        if not self._new:
            return None
        self._new = False
        secure = "; Secure" if https else ""
        return f"{self._name}={self._id}; HttpOnly; Max-Age={_YEAR}; Path=/; SameSite=Lax{secure}"


def checked_cookie_name(name: str) -> str:
    """Return the name of a cookie.

    Raises:
        ConfigurationError: not a cookie's name.
    """
    if type(name) is not str or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigurationError(f"name must be a cookie's: ASCII letters, digits, - and _, not {name!r}")
    return name


def _is_session_id(value: str) -> bool:
    # The one rule for ids is that of the events.
    try:
        CategoryView(session_external_id=value, category_id=0)
    except EventValidationError:
        return False
    return True
