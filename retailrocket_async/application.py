"""One shop's client in one application: the part that all frameworks share; use it directly for any other program.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment


    async def main() -> None:
        async with rocket.opened() as client:
            await client.view(...)

`retailrocket_async.fastapi`, `.starlette`, `.asgi` and `.aiohttp` each have a `RetailRocket` with additions for their
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
"""Seconds, the default of `AsyncTrackingClient.aclose`; half of the time that process managers usually give."""

C = TypeVar("C", bound=AsyncTrackingClient)


class RetailRocket(Uncopyable):
    """One shop's client in one application: declared at module level, created when the application starts.

    The constructor creates no client and reads no environment, so its module may be imported anywhere, also before a
    fork. Each start of the application, in each process, creates a client of its own.

    Args:
        make: returns the client; called in the event loop whenever the application starts. Default
            `AsyncTrackingClient.from_env`, which takes the key and the shop from the environment.
        name: the client's name in the application, a Python identifier; default ``"tracking"``. If an application
            serves several shops, each needs a name of its own.
        grace: seconds for delivering the remaining events when the application ends; default 15. Keep it below the time
            that the process manager gives.
        options: the keywords for `make`, for example those of `AsyncTrackingClient`.

    Raises:
        ConfigurationError: a wrong argument. Wrong `options` are found when the application starts.
    """

    _instead = "import the module that holds it; each process makes its client when it starts"

    # On the class, since __repr__ needs it even if the constructor raised.
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
        # A key may be among them, and an error's traceback would keep this local variable.
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
        """Create the client, and close it at the end of the block within `grace` seconds.

        Raises:
            ConfigurationError: a setting is missing or wrong.
        """
        client = self._given if self._given is not None else self._make(**self._options)
        async with client:
            try:
                yield client
            finally:
                # `async with` closes it again, which has no effect.
                await client.aclose(self._grace)

    @contextmanager
    def using(self, client: C) -> Generator[C]:
        """Make the application use this client if it starts inside the block; for tests.

        The application closes the client when it ends, since only its event loop can. So pass a new client for each
        start.

        Args:
            client: a client that was not used yet, e.g. ``retailrocket_async.testing.RecordingClient()``.

        Returns:
            A context manager that gives this client.
        """
        before, self._given = self._given, client
        try:
            yield client
        finally:
            self._given = before

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r}>"
