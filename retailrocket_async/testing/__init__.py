"""What a shop's own tests need: a client that sends nothing, and shows what was tracked.

::

    tracked = RecordingClient()
    await place_order(tracked)  # the shop's code, which takes an AsyncTrackingClient

    assert tracked.one(Order).transaction == "T-1"

With pytest the fixtures `tracked` and `retailrocket_emulator` are there as soon as the package is installed.
"""

from retailrocket_async._runtime.exports import publish

from ._client import RecordingClient
from ._fault import FaultKind

__all__ = ["FaultKind", "RecordingClient"]

publish(globals())
