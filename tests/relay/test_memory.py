"""Tests of `MemorySource`: those that every source must pass, and tests of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from retailrocket_async import ConfigurationError
from retailrocket_async.relay import MemorySource, MemoryStream, Publisher
from tests.contracts.source import SourceContract

if TYPE_CHECKING:
    from collections.abc import Sequence


class TestMemorySource(SourceContract):
    """Run the tests that every source must pass on a `MemorySource`."""

    lease = 1.0

    @pytest.fixture(autouse=True)
    def _stream(self) -> None:
        self.stream = MemoryStream()

    async def make(self, name: str = "relay-1", lease: float | None = None) -> MemorySource:
        """Return a source of this test's stream."""
        return MemorySource(self.stream, name=name, lease=lease or self.lease)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish to this test's stream."""
        await self.stream.publish(bodies)


def test_a_stream_is_a_publisher() -> None:
    """`MemoryStream` is a `Publisher`."""
    assert isinstance(MemoryStream(), Publisher)


@pytest.mark.parametrize("lease", [0, -1, float("inf"), float("nan"), "60", None])
def test_lease_is_checked(lease: float) -> None:
    """If the lease is not a number of seconds above 0, the constructor raises."""
    with pytest.raises(ConfigurationError, match="lease"):
        MemorySource(MemoryStream(), lease=lease)
