"""Tunes Python's garbage collector for a command that has the process to itself."""

import gc
from collections.abc import Generator
from contextlib import contextmanager

_YOUNG = 20_000
"""New objects after which the collector runs; Python's default is 700.

A relay holds some tens of thousands of objects for a moment, and they are freed without a cycle. A collection after
every 700 of them would find nothing.
"""


@contextmanager
def sparing_collector() -> Generator[None]:
    """Let the garbage collector run seldom, and only over objects that are new, while the block runs.

    Imported modules live as long as the process. A collection of their tens of thousands of objects stops the event
    loop for some 40 ms.
    """
    young, *older = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(max(young, _YOUNG), *older)
    try:
        yield
    finally:
        gc.set_threshold(young, *older)
        gc.unfreeze()
