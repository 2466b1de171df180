"""The object with which a program controls an emulator in its own event loop."""

from typing import Any

import attrs

from ._address import Address
from ._emulator import Emulator
from ._fault import Fault, FaultKind
from ._faults import FaultScript
from ._ledger import Ledger
from ._records import EventRecord, OrderViolation, RequestRecord
from ._settings import Settings
from ._window import SlidingWindow

__all__ = ["RunningEmulator"]


@attrs.frozen
class RunningEmulator(Address):
    """Controls an emulator that runs in this event loop.

    Attributes:
        root: the URL without a path at which the emulator listens, such as ``http://127.0.0.1:40123``.
        emulator: the emulator's state.
    """

    emulator: Emulator

    @property
    def settings(self) -> Settings:
        """The current settings; `configure` replaces them."""
        return self.emulator.settings

    @property
    def ledger(self) -> Ledger:
        """The record of requests and events."""
        return self.emulator.ledger

    @property
    def window(self) -> SlidingWindow:
        """The sliding window that counts arrivals and applies the limit."""
        return self.emulator.window

    @property
    def faults(self) -> FaultScript:
        """The pending faults: deliberate failures that are applied to the next requests."""
        return self.emulator.faults

    def fail_with(self, kind: FaultKind, **facts: Any) -> Fault:  # noqa: ANN401 - the attributes of Fault
        """Append a fault to the pending faults, and return the fault.

        Args:
            kind: the failure; see `Fault`.
            facts: any other attributes of `Fault`, such as ``status=429, retry_after="2", times=3``.

        Raises:
            ValueError: the values do not make a fault.
        """
        fault = Fault.from_dict({"kind": kind, **facts})
        self.faults.add(fault)
        return fault

    def configure(self, /, **changes: object) -> None:
        """Change settings at run time; see `Emulator.configure`."""
        self.emulator.configure(**changes)

    def reset(self) -> None:
        """Forget all requests, events, violations and faults; keep the settings."""
        self.emulator.reset()

    def stats(self) -> dict[str, Any]:
        """Return the counters, as ``GET /_control/stats`` does."""
        return self.emulator.stats()

    def events(
        self, name: str | None = None, session: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[EventRecord]:
        """Return the accepted events, oldest first; see `Ledger.events`."""
        return self.ledger.events(name, session, after, limit)

    def requests(self, limit: int | None = None) -> list[RequestRecord]:
        """Return the last requests, oldest first: at most *limit*, and never more than 1,000."""
        return self.ledger.requests(limit)

    def refused(self, limit: int | None = None) -> list[RequestRecord]:
        """Return the last refused requests, oldest first: at most *limit*, and never more than 1,000."""
        return self.ledger.refused(limit)

    def violations(self, limit: int | None = None) -> list[OrderViolation]:
        """Return the last violations of a visitor's order, oldest first: at most *limit*, and never more than 1,000."""
        return self.emulator.order.violations(limit)
