"""The directory of a spool: a directory that is not private or not local is refused with a reason."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import (
    SpoolError,
)
from retailrocket_async._spool.directory import network_mount
from retailrocket_async._spool.file import SpoolFile
from tests.support.spools import (
    add,
    numbered,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_files_are_private(file: SpoolFile, tmp_path: Path) -> None:
    """Only the owner can use the directory and its files, whatever the umask is."""
    add(file, numbered(1))
    assert file.lease.acquire()
    directory = tmp_path / "spool"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert len(modes) == 5
    assert set(modes.values()) == {0o600}


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """If other users can read the directory, opening the spool raises an error that advises `chmod 700`."""
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(SpoolError, match="chmod 700"):
        make("open").open()


def test_a_directory_without_rights_is_refused(unprivileged: Path) -> None:
    """If the directory cannot be written, opening the spool raises an error that says that the spool cannot be used."""
    (unprivileged / "ro").mkdir(mode=0o500)
    with pytest.raises(SpoolError, match="cannot be used"):
        SpoolFile(unprivileged / "ro" / "s").open()


def test_a_path_that_is_a_file_is_refused(tmp_path: Path, make: Callable[..., SpoolFile]) -> None:
    """If there is a file at the path of the directory, opening the spool raises an error."""
    (tmp_path / "s").write_text("here already")
    with pytest.raises(SpoolError, match=os.strerror(errno.ENOTDIR) + "|cannot be used|could be read"):
        make().open()


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:50 / /mnt/share rw - nfs4 server:/share rw
31 30 0:51 / /mnt/share/local rw - xfs /dev/vdb rw
32 22 0:52 / /mnt/with\\040space rw - cifs //server/share rw
33 22 0:53 / /mnt/over rw - ext4 /dev/vdc rw
34 33 0:54 / /mnt/over rw - fuse.sshfs host: rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/spool", None),
        ("/mnt/share/spool", "nfs4"),
        ("/mnt/shared/spool", None),
        ("/mnt/share/local/spool", None),
        ("/mnt/with space/spool", "cifs"),
        ("/mnt/over/spool", "fuse.sshfs"),
    ],
)
def test_network_file_systems_are_recognised(path: str, kind: str | None) -> None:
    """`network_mount` returns the network file system of a path's deepest mount (of two, the later), or None."""
    assert network_mount(MOUNTS.splitlines(), Path(path)) == kind
