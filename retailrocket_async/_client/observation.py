"""Connects an observer to a client without keeping the client alive."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Self

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._observer import ObservedClient, Observer, Watch

if TYPE_CHECKING:
    from retailrocket_async._client.lifecycle import Lifecycle
    from retailrocket_async._stats import Stats


def watch_for(observer: Observer | None, client: Lifecycle, *, partner_id: str, base_url: str) -> Watch | None:
    """Call `Observer.opened`; return the `Watch` that calls the other methods, or None without an observer.

    Args:
        observer: the user's observer, or None.
        client: the client that the observer follows, and that counts the observer's errors.
        partner_id: the shop's public id.
        base_url: the base URL of the client's requests.

    Raises:
        ConfigurationError: `observer` is not an `Observer`, or `Watch` refuses the observer.
    """
    if observer is None:
        return None
    if not isinstance(observer, Observer):
        raise ConfigurationError(f"observer must be an Observer, not {type(observer).__name__}")
    reference = weakref.ref(client)

    def failed(name: str, error: BaseException) -> None:
        alive = reference()
        if alive is not None:
            alive._engine.hook_failed(name, error)  # noqa: SLF001 - the same package

    watch = Watch(observer, failed)
    watch.opened(ObservedClient(partner_id=partner_id, base_url=base_url, stats=_WeakStats(client)))
    return watch


class _WeakStats:
    """Returns a client's counters when called, or None if the client no longer exists or this object was unpickled."""

    def __init__(self, client: Lifecycle | None = None) -> None:
        self._client = None if client is None else weakref.ref(client)

    def __call__(self) -> Stats | None:
        client = None if self._client is None else self._client()
        return None if client is None else client.stats()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[_WeakStats], tuple[()]]:
        return type(self), ()
