"""Makes sure that a client is used in one event loop and one process only."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from retailrocket_async._errors import WrongLoopError
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.forks import watch_forks
from retailrocket_async._runtime.loop_end import watch
from retailrocket_async._runtime.running import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class LoopAffinity:
    """Binds a client to the event loop of its first use, and to one process.

    Args:
        ended: called in any thread when the loop is closed or the process ends. The argument is the start of a sentence
            that says what ended, e.g. ``"its event loop was closed"``. Never called in a forked child.

    Attributes:
        loop: the client's event loop; None before the first use and after a fork.
    """

    def __init__(self, ended: Callable[[str], None] | None = None) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ended = ended
        self._forked = False
        watch_forks(self)

    def enter(self) -> asyncio.AbstractEventLoop:
        """Check that the running event loop is the client's loop, and return the loop.

        The first call makes the running loop the client's loop.

        Raises:
            WrongLoopError: no loop runs in this thread, another loop runs, or the client was made before a fork.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not None and loop is self.loop:
            return loop
        if self._forked:
            raise WrongLoopError(
                "this client was made before a fork: create it in each worker process, e.g. in the lifespan of the app"
            )
        if loop is None:
            raise WrongLoopError(
                "no event loop runs in this thread: call the client from coroutines of the loop it was first used in, "
                "or use the handle that client.threadsafe() returns there"
            )
        if self.loop is not None:
            raise WrongLoopError(
                "this client belongs to another event loop: create one client for each loop, inside a coroutine"
            )
        self.loop = loop
        watch(loop, self)
        return loop

    def loop_ended(self, how: str) -> None:
        """Call the constructor's argument `ended`, except in a forked child.

        `loop_end.watch` makes sure that this method is called when the loop is closed or the process ends.
        """
        if self._ended is not None and not self._forked:
            self._ended(how)

    def here(self) -> bool:
        """Whether the client's loop runs in this thread."""
        loop = running_loop()
        return loop is not None and loop is self.loop

    def now(self) -> float:
        """Return the loop's time in seconds; 0 before the first use."""
        return self.loop.time() if self.loop is not None else 0.0

    def create_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in a task of the client's loop, in an empty context."""
        try:
            # `create_task` gets no argument `context`, because older task factories do not accept that argument.
            return detached(self.enter().create_task, work)
        except BaseException:
            # `create_task` can fail, for example at the recursion limit. The coroutine is closed then, because Python
            # would otherwise warn that the coroutine was never awaited.
            work.close()
            raise

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `callback` after `seconds`, in an empty context."""
        return detached(self.enter().call_later, seconds, callback)

    def after_fork(self) -> None:
        """Forget the loop in a forked child, because the loop belongs to the parent process."""
        self.loop = None
        self._forked = True
