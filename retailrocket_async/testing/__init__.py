"""Tools for the tests of a shop: a client that uses no network, and records the events that the shop tracks.

::

    tracked = RecordingClient()
    await place_order(tracked)  # the shop's code, which takes an AsyncTrackingClient

    assert tracked.one(Order).transaction == "T-1"

The package is also a pytest plugin, with the fixtures `tracked` and `retailrocket_emulator`.
"""

from retailrocket_async._runtime.exports import publish

from ._client import RecordingClient
from ._fault import FaultKind

__all__ = ["FaultKind", "RecordingClient"]

publish(globals())
