"""One shop's client in one application: what frameworks and workers share, for those without a module here, too.

::

    rocket = RetailRocket()  # in a module of the application; makes nothing, reads nothing


    async def main() -> None:
        async with rocket.opened() as client:
            await client.view(...)

`retailrocket_async.fastapi`, `.starlette` and `.aiohttp` each have a `RetailRocket` that adds what belongs to their
framework.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from retailrocket_async import AsyncTrackingClient, ConfigurationError
from retailrocket_async._runtime.uncopyable import Uncopyable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

__all__ = ["RetailRocket"]

DEFAULT_GRACE = 15.0
"""Seconds, as of `AsyncTrackingClient.aclose`; half of the grace that process managers commonly give."""

C = TypeVar("C", bound=AsyncTrackingClient)


class RetailRocket(Uncopyable):
    """One shop's client in one application, named at module level and made where the application starts.

    Making a `RetailRocket` creates no client and reads no environment: the module that holds it may be imported
    anywhere, before a fork too. Each start of an application, in each of its processes, gets a client of its own.

    Args:
        make: returns the client; called in the event loop whenever the application starts. Default
            `AsyncTrackingClient.from_env`, so the key and the shop come from the environment then.
        name: what the application calls the client, a Python identifier; default ``"tracking"``. Each shop of an
            application with several has its own.
        grace: seconds in which the client delivers what is left when the application ends; default 15. Keep it below
            the time that the process manager gives.
        options: the keywords for `make`, those of `AsyncTrackingClient` for example.

    Raises:
        ConfigurationError: an argument that cannot work. What `make` makes of its keywords is seen at the start.
    """

    _instead = "import the module that holds it; each process makes its client when it starts"

    # On the class: __repr__ looks at it also where the constructor raised.
    name = ""

    def __init__(
        self,
        make: Callable[..., AsyncTrackingClient] = AsyncTrackingClient.from_env,
        /,
        *,
        name: str = "tracking",
        grace: float = DEFAULT_GRACE,
        **options: Any,  # noqa: ANN401 - the keywords of `make`
    ) -> None:
        self._make = make
        self._options = options
        # A key may be among them, and the frame of an error is kept with it.
        del options
        if not callable(make):
            raise ConfigurationError(f"make must be a function that returns a client, not {type(make).__name__}")
        if type(name) is not str or not name.isidentifier():
            raise ConfigurationError(f"name must be a Python identifier, not {name!r}")
        if type(grace) not in (int, float) or not grace >= 0:
            raise ConfigurationError(f"grace must be a number of seconds, 0 or more, not {grace!r}")
        self.name = name
        self._grace = grace
        self._given: AsyncTrackingClient | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[AsyncTrackingClient]:
        """Make the client, and close it with the block, within `grace`.

        Raises:
            ConfigurationError: a setting is missing or wrong.
        """
        client = self._given if self._given is not None else self._make(**self._options)
        async with client:
            try:
                yield client
            finally:
                # To close it again, which the block does, changes nothing.
                await client.aclose(self._grace)

    @contextmanager
    def using(self, client: C) -> Generator[C]:
        """Have the application take this client in place of its own, where it starts inside the block: for tests.

        The application closes the client when it ends, as it would close its own, since only its event loop can. So
        give it a new one for each start.

        Args:
            client: a client that was not used yet, e.g. ``retailrocket_async.testing.RecordingClient()``.

        Returns:
            A context manager that gives the client back.
        """
        before, self._given = self._given, client
        try:
            yield client
        finally:
            self._given = before

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r}>"
