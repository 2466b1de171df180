"""Runs the command line: in this process, or as a process of its own with pipes or on a terminal.

A process of its own takes more than a second of the processor. It is for tests of signals, of pipes that stay open, of
terminals, of memory, and of the interpreter's start and end.
"""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import attrs
import pytest

from retailrocket_async.cli import _terminal, main

if TYPE_CHECKING:
    from collections.abc import Generator

    from retailrocket_async.emulator import EmulatorProcess

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals, devices or terminals")

UNSET = {"RETAILROCKET_API_KEY": "", "RETAILROCKET_PARTNER_ID": "", "RETAILROCKET_BASE_URL": "http://127.0.0.1:9/"}
# Wide, so that no sentence is broken, and without colours.
PLAIN = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}

# Code for a process: the command line, and standard outputs that cannot be written.
MAIN = "from retailrocket_async.cli import main; main()"
GONE = "import os; ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 1)"
FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
NO_SPACE = "error: the standard output cannot be written: No space left on device\n"


UNWRITABLE = [("gone", ""), ("full", NO_SPACE)]
"""The kinds of `unwritable_output`, and what a command says of each."""


def settings_for(emulator: EmulatorProcess) -> dict[str, str]:
    """Return the environment in which a command sends to `emulator`."""
    return {
        **PLAIN,
        "RETAILROCKET_API_KEY": "dev-api-key",
        "RETAILROCKET_PARTNER_ID": "dev-partner",
        "RETAILROCKET_BASE_URL": emulator.url,
    }


@attrs.frozen
class Result:
    """The end of a command: its exit status, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """What it printed on both outputs."""
        return self.stdout + self.stderr


def run_command(
    *arguments: object,
    env: dict[str, str] | None = None,
    stdin: bytes | None = b"",
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    encoding: str = "utf-8",
) -> Result:
    """Run the command line in this process, and undo everything that it changed in the process.

    Args:
        arguments: of the command line.
        env: the environment; without the settings of a shop nothing is configured.
        stdin: what the standard input holds; None for a process without one.
        stdout: the standard output, closed at the end as the interpreter closes it; default one in memory.
        stderr: the standard error, likewise.
        encoding: of the outputs in memory.
    """
    outputs = {"stdout": stdout or _in_memory(encoding), "stderr": stderr or _in_memory(encoding)}
    with pytest.MonkeyPatch.context() as patch, _log_restored():
        for name, value in {**PLAIN, **UNSET, **(env or {})}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["retailrocket-async", *map(str, arguments)])
        patch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        for name, output in outputs.items():
            patch.setattr(sys, name, output)
        patch.setattr(_terminal, "_unwritable", set[TextIO]())
        with pytest.raises(SystemExit) as ended:
            main()
    status = ended.value.code
    return Result(status if isinstance(status, int) else int(status is not None), *map(_taken, outputs.values()))


def unwritable_output(kind: str, *, buffered: bool = True) -> TextIO:
    """Return an output that cannot be written.

    Args:
        kind: ``"gone"``, a pipe whose reader has ended; ``"full"``, a device without space.
        buffered: False writes each piece immediately, as Python does with `PYTHONUNBUFFERED`.
    """
    if kind == "gone":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    if buffered:
        return os.fdopen(writing, "w", encoding="utf-8")
    return io.TextIOWrapper(os.fdopen(writing, "wb", buffering=0), encoding="utf-8", write_through=True)


def _in_memory(encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")


def _taken(output: TextIO) -> str:
    """Return what an output in memory holds; close any other."""
    output.flush()
    if isinstance(output.buffer, io.BytesIO):
        return output.buffer.getvalue().decode(output.encoding)
    output.close()
    return ""


@contextmanager
def _log_restored() -> Generator[None]:
    log = logging.getLogger("retailrocket_async")
    handlers, level = list(log.handlers), log.level
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)


@contextmanager
def unimported(*names: str, missing: str | None = None) -> Generator[None]:
    """Remove modules, and those inside of them, so that the block imports them anew; afterwards the old ones are back.

    Args:
        names: the modules.
        missing: a library that cannot be imported in the block; None (default) for none.
    """
    roots = names if missing is None else (*names, missing)

    def affected() -> list[str]:
        return [name for name in sys.modules if name.startswith(tuple(f"{root}." for root in roots)) or name in roots]

    before = {name: sys.modules.pop(name) for name in affected()}
    if missing is not None:
        # What the import system takes for a missing module.
        sys.modules[missing] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in affected():
            del sys.modules[name]
        sys.modules.update(before)


class Interrupting:
    """A finder that is interrupted by Ctrl-C when a module is imported.

    Args:
        name: the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: object) -> None:
        """Raise `KeyboardInterrupt` for the module; find nothing otherwise."""
        if name == self._name:
            raise KeyboardInterrupt


@contextmanager
def started(
    *arguments: object, env: dict[str, str] | None = None, code: str | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Start the command line, or Python `code` with its arguments, as a process whose streams are pipes.

    It ends with the block, and after five minutes at the latest, so that a test that hangs fails.
    """
    process = subprocess.Popen(
        [sys.executable, *(["-m", "retailrocket_async"] if code is None else ["-c", code]), *map(str, arguments)],
        env={**os.environ, **PLAIN, **UNSET, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = threading.Timer(300, process.kill)
    deadline.start()
    try:
        yield process
    finally:
        deadline.cancel()
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            # Closing flushes, which fails if the process has ended.
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        process.wait()


def finished(
    *arguments: object, env: dict[str, str] | None = None, code: str | None = None, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run the command line as a process to its end; return its status and what it printed on both outputs."""
    with started(*arguments, env=env, code=code) as process:
        out, err = process.communicate(stdin)
        return process.returncode, out.decode(), err.decode()


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write to the standard input of a process, and leave it open."""
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def on_a_terminal(arguments: list[str], answers: dict[bytes, bytes], env: dict[str, str]) -> tuple[int, bytes]:
    """Run the command line on a terminal, type the answer to each prompt; return its status and what was shown."""
    command = [sys.executable, "-m", "retailrocket_async", *arguments]
    code = f"import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn({command!r})))"
    seen = b""
    with started(env={**env, "TERM": "xterm", "NO_COLOR": ""}, code=code) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 4096):
            seen += piece
            for prompt in [prompt for prompt in answers if prompt in seen]:
                feed(process, answers.pop(prompt))
        return process.wait(), seen
