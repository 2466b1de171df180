"""An observer is called for every request and outcome; an error in the observer changes no request and no outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    Batching,
    ConfigurationError,
    Delivered,
    Observer,
    Rejected,
    RejectedError,
    SqliteSpool,
    View,
)
from retailrocket_async.testing import RecordingClient
from tests.support.fakes import check_balance, event

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from retailrocket_async import ObservedClient, ObservedRequest, Outcome

place: ContextVar[str | None] = ContextVar("place", default=None)


class Noting(Observer):
    """An observer that records all its calls."""

    def __init__(self) -> None:
        self.clients: list[ObservedClient] = []
        self.begun: list[ObservedRequest] = []
        self.ended: list[tuple[object, int | None, str | None]] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def opened(self, client: ObservedClient) -> None:
        """Record the client."""
        self.clients.append(client)

    def tracked(self) -> object:
        """Return the current value of the context variable `place`."""
        return place.get()

    def request_began(self, request: ObservedRequest) -> object:
        """Record a request."""
        self.begun.append(request)
        return len(self.begun)

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Record the end of a request."""
        self.ended.append((begun, status, failure))

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Count the outcomes by event name and type."""
        for name, count in names.items():
            self.outcomes[name, type(outcome).__name__] += count


class Raising(Observer):
    """An observer that raises in every method but `opened`."""

    def tracked(self) -> object:
        """Raise an error."""
        raise ValueError("tracked")

    def request_began(self, request: ObservedRequest) -> object:
        """Raise an error."""
        raise ValueError("request_began")

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Raise an error."""
        raise ValueError("request_ended")

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Raise an error."""
        raise ValueError("settled")


class RaisingAtTheEnd(Raising):
    """An observer that raises in every method but `opened` and `request_began`."""

    def request_began(self, request: ObservedRequest) -> object:
        """Return None instead of raising."""
        return None


async def test_a_batch_knows_where_its_events_came_from() -> None:
    """If a batch is sent, the observer gets each different value that `tracked` returned for the batch's events."""
    seen = Noting()
    async with RecordingClient(observer=seen, batching=Batching(linger=60.0)) as client:
        place.set("page one")
        await client.track_many([event(1), event(2)])
        place.set("page two")
        client.track_nowait(event(3))
        place.set(None)
        await client.track(event(4))
        place.set("a thread")
        await asyncio.to_thread(client.threadsafe().track, event(5))
        await client.flush()

    [request] = seen.begun
    assert ("visitorEvents", 1, 5, False) == (request.path, request.attempt, request.events, request.direct)
    assert ("page one", "page two", "a thread") == request.tracked
    assert [(1, 200, None)] == seen.ended
    assert {("view", "Delivered"): 5} == seen.outcomes


class Asked(Noting):
    """An observer that sets `origin` to the context variable `place`, and counts the calls of `tracked`."""

    origin = place

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def tracked(self) -> object:
        """Count the call, and return the current value of the context variable `place`."""
        self.asked += 1
        return super().tracked()


async def test_an_observer_is_asked_once_for_one_origin() -> None:
    """If `origin` is a context variable, `tracked` is called only after a change of the variable's value."""
    seen = Asked()
    async with RecordingClient(observer=seen, batching=Batching(linger=0.05)) as client:
        for page in ["one", "two", "one", None, "two"]:
            place.set(page)
            for number in range(1, 10):
                await client.track(event(number))
        await client.flush()
    assert 5 == seen.asked
    assert [("one", "two")] == [request.tracked for request in seen.begun]


async def test_an_observer_that_fails_for_an_origin_is_asked_again() -> None:
    """If `tracked` raises for an event, this event gets no value, and `tracked` is called again for the next event."""

    class Failing(Asked):
        def tracked(self) -> object:
            if place.get() == "two" and self.asked < 4:
                self.asked += 1
                raise ValueError
            return super().tracked()

    seen = Failing()
    async with RecordingClient(observer=seen, batching=Batching(linger=0.05)) as client:
        for page in ["one", "two"]:
            place.set(page)
            for number in range(1, 6):
                await client.track(event(number))
        await client.flush()
        assert 3 == client.stats().hook_errors
    assert 5 == seen.asked
    assert [("one", "two")] == [request.tracked for request in seen.begun]


@pytest.mark.parametrize("origin", ["place", ContextVar[int]("without")], ids=["a name", "no default"])
def test_an_origin_is_a_variable_with_a_default(origin: Any) -> None:
    """If `origin` is not a context variable with a default, the constructor raises `ConfigurationError`."""
    observer = Observer()
    observer.origin = origin
    with pytest.raises(ConfigurationError, match=r"Observer\.origin must be a ContextVar"):
        RecordingClient(observer=observer)


async def test_a_mark_of_an_event_that_waited_for_room() -> None:
    """If an event waited for space in the buffer, the observer still gets the value from the caller's context."""
    seen = Noting()
    client = RecordingClient(observer=seen, batching=Batching(max_events=1, max_in_flight=1))
    async with client:
        place.set("here")
        await client.track_many([event(number) for number in range(1, 6)])
        await client.flush()
    assert {("here",)} == {request.tracked for request in seen.begun}


async def test_direct_requests_and_retries() -> None:
    """If a request is direct, a retry or refused, `direct`, `attempt` and the status show this to the observer."""
    seen = Noting()
    async with RecordingClient(observer=seen) as client:
        client.fail_with(status=503)
        await client.send(event(1))
        client.fail_with("connect")
        await client.send_batch([event(2), event(3)])
        client.fail_with(rejected=View)
        with pytest.raises(RejectedError):
            await client.send(event(4))

    assert [1, 2, 1, 2, 1] == [request.attempt for request in seen.begun]
    assert {True} == {request.direct for request in seen.begun}
    assert [(503, None), (200, None), (None, "connect"), (200, None), (400, None)] == [end[1:] for end in seen.ended]
    assert {("view", "Delivered"): 3, ("view", "Rejected"): 1} == seen.outcomes


async def test_a_request_that_is_cut_short_has_an_end() -> None:
    """If a request is cancelled after `request_began`, `request_ended` is still called."""
    seen = Noting()
    client = RecordingClient(observer=seen)
    client.fail_with("stall", times=None)
    await client.track(event(1))
    await client.aclose(0.05)
    # The task of the request that `aclose` has cancelled may end only after `aclose` has returned.
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    assert len(seen.begun) == len(seen.ended) > 0
    assert {("view", "Abandoned"): 1} == seen.outcomes


async def test_the_client_is_shown_and_not_held() -> None:
    """If an observer gets an `ObservedClient`, this object shows the client's counters, and its repr hides the key."""
    seen = Noting()
    client = RecordingClient(observer=seen)
    async with client:
        await client.track(event(1))
        [shown] = seen.clients
        assert ("test-partner", "http://localhost/1.0/") == (shown.partner_id, shown.base_url)
        stats = shown.stats()
        assert stats is not None
        assert 1 == stats.tracked
    assert "test-api-key" not in repr(shown)


@pytest.mark.parametrize("observer", [Raising(), RaisingAtTheEnd()], ids=["throughout", "at the end"])
async def test_errors_of_an_observer_change_nothing(observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    """If the observer raises, every event is still delivered; each error is counted, but only one is logged."""
    async with RecordingClient(observer=observer) as client:
        receipt = await client.track(event(1))
        client.track_nowait(event(2))
        await asyncio.to_thread(client.threadsafe().track, event(3))
        assert isinstance(await receipt, Delivered)
        await client.flush()
        stats = client.stats()
    check_balance(stats)
    assert 3 == stats.delivered
    assert stats.hook_errors >= 5
    assert 1 == sum("observer raised ValueError" in record.getMessage() for record in caplog.records)


async def test_events_of_a_spool_are_seen(tmp_path: Path) -> None:
    """If the client has a spool, the observer still gets all requests and outcomes."""
    seen = Noting()
    async with RecordingClient(observer=seen, spool=SqliteSpool(tmp_path / "spool")) as client:
        await client.track_many([event(1), event(2)])
        await client.flush()
    assert {("view", "Delivered"): 2} == seen.outcomes
    assert 2 == sum(request.events for request in seen.begun)


def test_only_an_observer_is_one() -> None:
    """If the observer is not an `Observer`, the constructor raises `ConfigurationError`."""
    wrong: Any = object()
    with pytest.raises(ConfigurationError, match="observer must be an Observer, not object"):
        RecordingClient(observer=wrong)


async def test_an_observer_that_does_nothing_is_one() -> None:
    """If the observer is an instance of the base class `Observer`, the client works."""
    async with RecordingClient(observer=Observer()) as client:
        assert isinstance(await (await client.track(event(1))), Delivered)
        client.fail_with(rejected=View)
        assert isinstance(await (await client.track(event(2))), Rejected)
