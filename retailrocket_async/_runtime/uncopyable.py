"""Makes objects that belong to one process refuse to be copied or pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

from retailrocket_async._errors import UncopyableError

if TYPE_CHECKING:
    from typing import SupportsIndex


class Uncopyable:
    """A base class that refuses `copy`, `deepcopy` and `pickle`, and so `multiprocessing`, which pickles.

    Attributes:
        _instead: what to do instead, as the end of the error's message.
    """

    __slots__ = ()

    _instead: ClassVar[str] = "make one in each process"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UncopyableError(f"{type(self).__name__} cannot be copied or pickled: {self._instead}")
