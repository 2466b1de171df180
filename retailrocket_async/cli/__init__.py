"""The command line, ``retailrocket-async``: try the package, send files, check credentials, run the emulator.

::

    files --_reading--> bytes --_lines--> events --_delivery--> the API
                                 :                    :
                                 :... bad lines ......:... undelivered events ...> _rejects

Needs the extra ``cli``; `demo` and `emulate` also need the extra ``emulator``. The commands use only the package's
public names.
"""

from __future__ import annotations

import sys

from retailrocket_async._runtime.extras import installed

__all__ = ["main"]

_EXTRA = ("typer", "rich")


def main() -> None:
    """Run the command line with the arguments of the process, and exit with the status of the command."""
    missing = [name for name in _EXTRA if not installed(name)]
    if missing:
        sys.stderr.write(
            f'error: the command line needs {" and ".join(missing)}: pip install "retailrocket-async[cli]"\n'
        )
        raise SystemExit(2)
    try:
        # The import is inside the block, so that a missing extra prints a sentence and not a traceback.
        from retailrocket_async.cli._app import run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        # Ctrl-C was pressed during the imports. A running command handles Ctrl-C itself.
        raise SystemExit(130) from None
