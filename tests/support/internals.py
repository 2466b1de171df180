"""The private attributes of the package that tests read, each behind a name that says what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient


def engine_of(client: AsyncTrackingClient) -> Any:
    """Return the engine of a client: a `Dispatcher`, or with a spool a `SpooledDispatcher`."""
    return client._engine


def is_of_the_client(thing: object) -> bool:
    """Whether an object's class is one of the client: of a private file, or a public class of the package itself."""
    module = str(type(thing).__module__)
    return module == "retailrocket_async" or module.startswith("retailrocket_async._")
