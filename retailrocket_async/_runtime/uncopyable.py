"""Objects that live in one process: copying or pickling one is refused, in a sentence that says what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

from retailrocket_async._errors import UncopyableError

if TYPE_CHECKING:
    from typing import SupportsIndex


class Uncopyable:
    """Refuses `copy`, `deepcopy` and `pickle`, and so `multiprocessing`, which pickles what it gives to a child.

    Attributes:
        _instead: what to do instead; the end of the error's sentence.
    """

    __slots__ = ()

    _instead: ClassVar[str] = "make one in each process"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UncopyableError(f"{type(self).__name__} cannot be copied or pickled: {self._instead}")
