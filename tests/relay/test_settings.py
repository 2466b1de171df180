"""Tests of the settings of a relay's process."""

from __future__ import annotations

from retailrocket_async import Batching
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async.relay import RelaySettings


def test_a_window_of_one_visitor_fits() -> None:
    """If all messages of a full window and one more fetch belong to one visitor, the client's buffer takes all."""
    settings = RelaySettings(source="redis://redis:6379/0?stream=events", name="relay")
    buffer = EventBuffer(Batching(), settings.buffer, lambda: 0.0)
    key = EventBuffer.key_of("a1b2c3")

    buffer.append(b"{}", "view", key)
    buffer.take()
    taken = [buffer.offer(b"{}", "view", key) for _ in range(settings.window + settings.batch - 1)]

    assert None not in taken
