"""The settings of a spool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Buffer,
    ConfigurationError,
    SqliteSpool,
)
from tests.support.spools import (
    KEY,
    SHOP,
    client_of,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path of a directory"),
        ({"path": 1}, "path of a directory"),
        ({"durability": "never"}, "durability"),
        ({"max_bytes": 1000}, "max_bytes"),
        ({"min_free": -1}, "min_free"),
        ({"max_age": 0}, "max_age"),
        ({"full_timeout": -1}, "full_timeout"),
        ({"dead_age": "1"}, "dead_age"),
        ({"max_dead": 1.5}, "max_dead"),
    ],
)
def test_bad_configuration(options: dict[str, Any], message: str) -> None:
    """If a setting is invalid, `SqliteSpool` raises an error that names the setting."""
    with pytest.raises(ConfigurationError, match=message):
        SqliteSpool(**{"path": "spool", **options})


@pytest.mark.parametrize("path", ["a\0b", b"bytes", b"\0"], ids=["nul", "bytes", "bytes with nul"])
def test_a_path_that_cannot_be(path: Any) -> None:
    """If the path is one that no operating system accepts, `SqliteSpool` raises an error."""

    class PathLike:
        def __fspath__(self) -> Any:
            return path

    with pytest.raises(ConfigurationError, match="SqliteSpool"):
        SqliteSpool(PathLike())


def test_bad_combinations(tmp_path: Path) -> None:
    """A client refuses a spool that is no `SqliteSpool`, and a spool together with `overflow="shed"`."""
    with pytest.raises(ConfigurationError, match="SqliteSpool"):
        AsyncTrackingClient(KEY, SHOP, spool="spool")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="shed"):
        client_of(tmp_path, buffer=Buffer(overflow="shed"))
