"""A strict stand-in for Retail Rocket's tracking API, for development and tests.

The emulator checks every request by the API's contract and answers as the API does, with a status and ``{}``.
The emulator's control side, ``/_control/``, reports which requests and events arrived, which were refused and why. A
browser that opens the emulator's address shows these requests on a live page. On demand the emulator fails in every
way in which a network or a server fails. The emulator shares no code with the client, so the emulator refuses a wrong
request even if the client's code considers the request right. It also finds two requests with events of one visitor
that are under way at once, and timestamps of a visitor that run backward.

In the current event loop::

    async with running_emulator(Settings(limit=10)) as emulator:
        emulator.fail_with("status", status=503, times=2)
        ...  # a client of emulator.url
        assert emulator.stats()["total_events"] == 3

In a process of its own::

    with emulator_process() as emulator:
        ...  # a client of emulator.url
        assert emulator.stats()["over_limit"] == 0

On the command line: ``python -m retailrocket_async.emulator --port 8080``. Needs the extra ``emulator``.
"""

from retailrocket_async._runtime.exports import publish
from retailrocket_async._runtime.extras import needing

with needing("emulator"):
    from ._app import create_app
    from ._emulator import Emulator
    from ._fault import Fault, FaultKind
    from ._faults import FaultScript
    from ._ledger import Ledger
    from ._process import EmulatorError, EmulatorProcess, emulator_process
    from ._records import EventRecord, OrderViolation, RequestRecord
    from ._running import RunningEmulator
    from ._server import running_emulator, serve
    from ._settings import Settings
    from ._window import SlidingWindow

__all__ = [
    "Emulator",
    "EmulatorError",
    "EmulatorProcess",
    "EventRecord",
    "Fault",
    "FaultKind",
    "FaultScript",
    "Ledger",
    "OrderViolation",
    "RequestRecord",
    "RunningEmulator",
    "Settings",
    "SlidingWindow",
    "create_app",
    "emulator_process",
    "running_emulator",
    "serve",
]

publish(globals())
