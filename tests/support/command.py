"""Runs the command line: in this process, or in a new process with pipes or a terminal.

A new process costs more than a second of processor time. It is needed to test signals, pipes that stay open, terminals,
memory, and the start and the end of the interpreter.
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
# The settings of a wide terminal without colours, so that no line of the output is wrapped.
PLAIN = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}

# Code for a new process: MAIN runs the command line. GONE replaces the standard output by a pipe that nobody reads, and
# FULL by a device without free space.
MAIN = "from retailrocket_async.cli import main; main()"
GONE = "import os; ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 1)"
FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
NO_SPACE = "error: the standard output cannot be written: No space left on device\n"


UNWRITABLE = [("gone", ""), ("full", NO_SPACE)]
"""The kinds of `unwritable_output`, each with the message that a command prints."""


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
    """The result of a command: its exit status and its output."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """The text of both outputs, the standard output first."""
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
        arguments: the arguments of the command line.
        env: environment variables of the command. Without it, the key and the shop are not set.
        stdin: the content of the standard input; None for a process without a standard input.
        stdout: the standard output, which is closed at the end; default an output in memory.
        stderr: the standard error, which is closed at the end; default an output in memory.
        encoding: the encoding of the outputs in memory.
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
    """Return an output to which nothing can be written.

    Args:
        kind: ``"gone"`` for a pipe whose reader has ended; ``"full"`` for a device without free space.
        buffered: whether the output is buffered. With `PYTHONUNBUFFERED`, Python's standard output is not buffered.
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
    """Return the text of an output in memory; close any other output, and return an empty text."""
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
    """Make the `with` block import modules and their submodules again; restore the old modules after the block.

    Args:
        names: the names of the modules.
        missing: a library that cannot be imported in the block; None (default) if every library can be imported.
    """
    roots = names if missing is None else (*names, missing)

    def affected() -> list[str]:
        return [name for name in sys.modules if name.startswith(tuple(f"{root}." for root in roots)) or name in roots]

    before = {name: sys.modules.pop(name) for name in affected()}
    if missing is not None:
        # If a module is None here, the import system raises a ModuleNotFoundError.
        sys.modules[missing] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in affected():
            del sys.modules[name]
        sys.modules.update(before)


class Interrupting:
    """An import finder that raises `KeyboardInterrupt`, as Ctrl-C does, when a certain module is imported.

    Args:
        name: the name of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: object) -> None:
        """Raise `KeyboardInterrupt` for the module; find no other module."""
        if name == self._name:
            raise KeyboardInterrupt


@contextmanager
def started(
    *arguments: object, env: dict[str, str] | None = None, code: str | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Start the command line, or the Python program `code`, as a process whose standard streams are pipes.

    The process is killed at the end of the block, or after five minutes, so that a hanging test fails.
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
            # Closing a pipe flushes it first, and the flush fails if the process has already ended.
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        process.wait()


def finished(
    *arguments: object, env: dict[str, str] | None = None, code: str | None = None, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run the command line as a process to its end; return its exit status, standard output and standard error."""
    with started(*arguments, env=env, code=code) as process:
        out, err = process.communicate(stdin)
        return process.returncode, out.decode(), err.decode()


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write to the standard input of a process, and leave the input open."""
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def on_a_terminal(arguments: list[str], answers: dict[bytes, bytes], env: dict[str, str]) -> tuple[int, bytes]:
    """Run the command line on a terminal, and type the answer to each prompt.

    Return the exit status, and the text that the terminal showed.
    """
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
