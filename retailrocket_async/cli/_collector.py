"""Python's collector of garbage, in a process that is the command's own."""

import gc
from collections.abc import Generator
from contextlib import contextmanager

_YOUNG = 20_000
"""Objects that are new when the collector looks at them. A relay's window is some tens of thousands, alive for a moment
and then gone without any cycle: to look at them every 700, as is the default, finds nothing again and again."""


@contextmanager
def sparing_collector() -> Generator[None]:
    """Have the collector look at new objects only, and seldom.

    The modules stay for as long as the process does. Looking at their tens of thousands of objects stops the event loop
    for some 40 ms each time.
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
