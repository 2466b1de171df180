"""Prevents objects that belong to one process from being copied or pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

from retailrocket_async._errors import UncopyableError

if TYPE_CHECKING:
    from typing import SupportsIndex


class Uncopyable:
    """A base class whose objects cannot be copied or pickled.

    So the objects cannot be passed to another process by `multiprocessing`, which pickles them.

    Attributes:
        _instead: the end of the error's message, which says what to do instead.
    """

    __slots__ = ()

    _instead: ClassVar[str] = "make one in each process"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UncopyableError(f"{type(self).__name__} cannot be copied or pickled: {self._instead}")
