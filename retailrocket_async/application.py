"""Creates and closes the client of an application.

The framework modules are built on this module; a program without a framework uses this module directly.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment


    async def main() -> None:
        async with rocket.opened() as client:
            await client.view(...)

`retailrocket_async.fastapi`, `.starlette`, `.asgi` and `.aiohttp` each have their own `RetailRocket`, with additions
for the framework.
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
"""The default of `grace` in seconds, as in `AsyncTrackingClient.aclose`: half of the time that process managers usually
give a process to stop."""

C = TypeVar("C", bound=AsyncTrackingClient)


class RetailRocket(Uncopyable):
    """Creates one shop's client when the application starts, and closes the client when the application ends.

    Make a `RetailRocket` at module level. The constructor creates no client and reads no environment variable, so the
    module may be imported anywhere, also before a fork. Each start of the application creates a new client, in every
    process.

    Args:
        make: a function that returns the client; called in the event loop whenever the application starts. Default
            `AsyncTrackingClient.from_env`, which takes the key and the shop from the environment.
        name: the client's name in the application, a Python identifier; default ``"tracking"``. If an application
            serves several shops, each client needs a different name.
        grace: seconds to deliver the remaining events when the application ends; default 15. Choose less than the time
            after which the process manager kills the process.
        options: keyword arguments for `make`, for example those of `AsyncTrackingClient`.

    Raises:
        ConfigurationError: an argument is wrong. Wrong `options` are reported only when the application starts.
    """

    _instead = "import the module that holds it; each process makes its client when it starts"

    # The class has this default, because `__repr__` reads the name even if the constructor raised an error.
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
        # The options may include the API key, and the traceback of an error would show this local variable.
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
        """Create the client; at the end of the block, close the client within `grace` seconds.

        Raises:
            ConfigurationError: a setting is missing or wrong.
        """
        client = self._given if self._given is not None else self._make(**self._options)
        async with client:
            try:
                yield client
            finally:
                # `async with` will close the client a second time, which has no effect.
                await client.aclose(self._grace)

    @contextmanager
    def using(self, client: C) -> Generator[C]:
        """Make an application that starts inside this block use the given client; for tests.

        The application closes the client when the application ends, because the client must be closed in the
        application's event loop. So pass a new client for each start.

        Args:
            client: a client that has not been used, e.g. ``retailrocket_async.testing.RecordingClient()``.

        Returns:
            A context manager whose `as` value is `client`.
        """
        before, self._given = self._given, client
        try:
            yield client
        finally:
            self._given = before

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r}>"
