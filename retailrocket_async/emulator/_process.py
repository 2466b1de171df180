"""Runs an emulator in a process of its own, and controls that emulator by HTTP requests."""

import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import attrs
import orjson

from ._address import Address
from ._command import API_KEY, arguments_of
from ._fault import Fault, FaultKind
from ._settings import CHANGEABLE, Settings

__all__ = ["EmulatorError", "EmulatorProcess", "emulator_process"]

_LINE: Final = "emulator listening on "
_GRACE: Final = 5.0


class EmulatorError(Exception):
    """The emulator's process did not start, or the emulator's control side refused a request."""


@attrs.frozen
class EmulatorProcess(Address):
    """Controls an emulator in another process. Each method makes one blocking request of at most *timeout* seconds.

    Attributes:
        root: the URL without a path at which the emulator listens, such as ``http://127.0.0.1:40123``.
        pid: the id of the emulator's process.
        timeout: the most seconds that a control request may take; default 30.0.
        settings: the settings with which the emulator was started; default ``Settings()``.
    """

    pid: int
    timeout: float = 30.0
    settings: Settings = attrs.field(factory=Settings)

    @property
    def api_key(self) -> str:
        """The key with which the emulator was started."""
        return self.settings.api_key

    @property
    def partner_id(self) -> str:
        """The shop's id with which the emulator was started."""
        return self.settings.partner_id

    def stats(self) -> dict[str, Any]:
        """Return the counters, as ``GET /_control/stats`` does."""
        stats: dict[str, Any] = self._call("GET", "stats")
        return stats

    def events(
        self, name: str | None = None, session: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the accepted events, oldest first: ``seq``, ``request``, ``name`` and ``fields`` of each.

        Args:
            name: only events of this name; None (default) for all.
            session: only events of this `sessionExternalId`; None (default) for all.
            after: only events with a higher ``seq``; default 0.
            limit: the most events to return, the oldest first; None (default) for all.
        """
        wanted = {"name": name, "session": session, "after": after, "limit": limit}
        return self._list("events", wanted)

    def requests(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the last requests, oldest first: at most *limit*, and never more than 1,000."""
        return self._list("requests", {"limit": limit})

    def refused(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the last refused requests, oldest first: at most *limit*, and never more than 1,000."""
        return self._list("refused", {"limit": limit})

    def violations(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the last violations of a visitor's order, oldest first: at most *limit*, and never more than 1,000."""
        return self._list("violations", {"limit": limit})

    def reset(self) -> None:
        """Forget all requests, events, violations and faults; keep the settings."""
        self._call("POST", "reset")

    def restore(self) -> None:
        """Restore the emulator's first state: forget all that arrived and all faults, and reset the settings."""
        self.configure(**{name: getattr(self.settings, name) for name in CHANGEABLE})
        self.reset()

    def fail_with(self, kind: FaultKind, **facts: Any) -> Fault:  # noqa: ANN401 - the attributes of Fault
        """Append a fault to the pending faults, and return the fault; see `RunningEmulator.fail_with`.

        Raises:
            ValueError: the values do not make a fault.
        """
        fault = Fault.from_dict({"kind": kind, **facts})
        self.add_faults([fault])
        return fault

    def faults(self) -> list[dict[str, Any]]:
        """Return the pending faults."""
        return self._list("faults")

    def add_faults(self, faults: Iterable[Fault | Mapping[str, Any]]) -> None:
        """Append *faults* to the pending faults. If one of *faults* is wrong, no fault is appended.

        Raises:
            EmulatorError: one of *faults* is not a valid fault.
        """
        script = [fault.as_dict() if isinstance(fault, Fault) else dict(fault) for fault in faults]
        self._call("POST", "faults", script)

    def clear_faults(self) -> None:
        """Remove the pending faults."""
        self._call("DELETE", "faults")

    def configure(self, /, **changes: object) -> dict[str, Any]:
        """Change settings at run time, and return all settings except the key.

        If one of *changes* is wrong, no setting is changed.

        Args:
            changes: any of ``api_key``, ``arrival_jitter``, ``batch_latency``, ``forbidden``, ``latency``, ``limit``,
                ``max_body_bytes`` and ``strict_order``.

        Raises:
            EmulatorError: a setting is unknown, may not change at run time, or has a wrong value.
        """
        settings: dict[str, Any] = self._call("PATCH", "settings", changes)
        return settings

    def _list(self, name: str, query: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        given = urlencode({key: value for key, value in (query or {}).items() if value is not None})
        found: list[dict[str, Any]] = self._call("GET", f"{name}?{given}")
        return found

    def _call(self, method: str, target: str, data: object = None) -> Any:  # noqa: ANN401 - any JSON value
        at = urlsplit(self.control_url)
        connection = HTTPConnection(at.hostname or "", at.port, timeout=self.timeout)
        try:
            connection.request(method, f"{at.path}{target}", None if data is None else orjson.dumps(data))
            answer = connection.getresponse()
            body = orjson.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise EmulatorError(body["error"])
        return body


@contextmanager
def emulator_process(
    settings: Settings | None = None, host: str = "127.0.0.1", port: int = 0, startup_timeout: float = 30.0
) -> Generator[EmulatorProcess]:
    """Run an emulator in a separate process while the block runs.

    The emulator's process ends at the end of the block, and also if this process dies inside the block.

    Args:
        settings: how the emulator behaves; None (default) for ``Settings()``.
        host: the address to listen on; default ``"127.0.0.1"``, this machine alone.
        port: the port to listen on; default 0 for any free port.
        startup_timeout: the most seconds to wait until the emulator listens; default 30.0.

    Raises:
        EmulatorError: the emulator did not start; the standard error shows why.
    """
    command = [sys.executable, "-m", "retailrocket_async.emulator", "--until-stdin-closes"]
    settings = Settings() if settings is None else settings
    command += [f"--host={host}", f"--port={port}", *arguments_of(settings, with_key=False)]
    # The new process gets this process's module path, so that the new process finds the package even if the package
    # is not installed.
    path = os.pathsep.join(path for path in sys.path if path)
    # The key goes into the environment, because every user of the machine can read the arguments of a process.
    environment = os.environ | {"PYTHONPATH": path, API_KEY: settings.api_key}
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # The emulator's process gets a separate session, so that Ctrl-C on a terminal reaches only this process, which
        # then ends the emulator's process.
        start_new_session=True,
    )
    with process:
        try:
            yield EmulatorProcess(_root(process, startup_timeout), process.pid, settings=settings)
        finally:
            end(process, _GRACE)


def _root(process: subprocess.Popen[str], timeout: float) -> str:
    """Wait for the line in which *process* prints its address, and return the address."""
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
    finally:
        killer.cancel()
    if not line.startswith(_LINE):
        raise EmulatorError(f"the emulator did not start within {timeout} s, or failed to")
    return line.removeprefix(_LINE).strip()


def end(process: subprocess.Popen[str], grace: float) -> None:
    """Terminate *process*; kill *process* if *process* still runs after *grace* seconds."""
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
