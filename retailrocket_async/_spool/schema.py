"""The tables of a spool's database, and the settings of every connection to the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.failures import damaged

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

Durability: TypeAlias = Literal["commit", "interval"]
"""When an event is safe from a power cut: as soon as `track` returns (commit), or half a second later (interval)."""

PAGE: Final = 4096
"""Size of a page of the database in bytes; a spool uses SQLite's default."""

_MIGRATIONS: Final = (
    """
    CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, size INTEGER NOT NULL,
                        body TEXT NOT NULL);
    CREATE TABLE dead (id INTEGER PRIMARY KEY, at REAL NOT NULL, died_at REAL NOT NULL, reason TEXT NOT NULL,
                       maybe_recorded INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE INDEX dead_by_time ON dead (died_at);
    CREATE TABLE settled (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, ids TEXT NOT NULL,
                          outcome TEXT NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    """,
)
"""The statements of item n turn version n of the schema into version n + 1; version 0 has no tables. The version of a
database is stored as `PRAGMA user_version`."""

_HEADROOM: Final = 1 << 20
"""Bytes that SQLite may use beyond `max_bytes`, because the statements that remove events need space, too."""

_CHECKED_ALWAYS: Final = 32 << 20
"""Largest size in bytes of a database that is checked for damage whenever it is opened. The check takes some 5 ms per
MiB, so a larger database is checked only if there are signs of damage."""


def configure(connection: sqlite3.Connection, durability: Durability, max_bytes: int) -> None:
    """Apply the settings to a new connection, and bring the tables up to date.

    Raises:
        SpoolError: a newer version of this package wrote the database.
    """
    connection.text_factory = _decoded
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        raise SpoolError(f"the spool was written by a newer version of this package (schema {version}): upgrade")
    if not version:
        # This setting has an effect only before the first table is created. If tables exist, the statement would be
        # useless, and would write to a file that may be damaged.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={'FULL' if durability == 'commit' else 'NORMAL'}")
    connection.execute(f"PRAGMA journal_size_limit={16 << 20}")
    connection.execute(f"PRAGMA max_page_count={(max_bytes + _HEADROOM) // PAGE}")
    # With this setting SQLite checks the cells of each page that it reads, so a damaged page is noticed.
    connection.execute("PRAGMA cell_size_check=ON")
    for number in range(version, len(_MIGRATIONS)):
        # Each version has its own transaction, so after a crash the tables are still in the previous version.
        connection.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT")


def claim(connection: sqlite3.Connection, shop: str, directory: Path) -> None:
    """Store `shop`, a partner id, as the owner of the database if the database has no owner yet.

    Raises:
        SpoolError: the database belongs to another shop.
    """
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('shop', ?)", (shop,))
    owner = owner_of(connection)
    if owner != shop:
        raise SpoolError(f"the spool in {directory} belongs to partner_id {owner!r}: one spool per shop")


def owner_of(connection: sqlite3.Connection) -> str | None:
    """Return the partner id of the shop that owns the database; None if no client has used the database yet."""
    found = connection.execute("SELECT value FROM meta WHERE name = 'shop'").fetchone()
    return None if found is None else str(found[0])


def check_for_damage(connection: sqlite3.Connection, directory: Path, *, large: bool) -> bool:
    """Check the database for damage; a database of more than 32 MiB is checked only if `large` is true.

    Args:
        connection: an open connection.
        directory: the directory of the spool, for the error.
        large: whether to check the database even if it has more than 32 MiB.

    Returns:
        True if the database was checked.

    Raises:
        SpoolDamagedError: the database is damaged.
    """
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    if not large and pages * PAGE > _CHECKED_ALWAYS:
        return False
    [finding] = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise damaged(directory, finding.splitlines()[-1])
    return True


def _decoded(text: bytes) -> str:
    # Bytes that are not valid UTF-8 are replaced, because an error would prevent other events from being read.
    return text.decode(errors="replace")
