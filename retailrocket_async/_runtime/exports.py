"""Sets `__module__` of public classes and functions to the package from which users import them.

A repr, a traceback and a pickle then name `retailrocket_async`, and not the private file, which may be renamed.

`typing.get_type_hints` looks up annotations that are strings in the module that `__module__` names. Names of the
private file are missing there. So a file with public attrs classes has no ``from __future__ import annotations``: the
annotations are then objects, not strings.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any


def publish(package: dict[str, Any]) -> None:
    """Set `__module__` of every class and function of ``__all__`` that is defined in a private file of the package.

    Args:
        package: the namespace of the package, its ``globals()``.
    """
    name = package["__name__"]
    for public in package["__all__"]:
        thing = package.get(public)
        if isinstance(thing, type | FunctionType) and thing.__module__.startswith(f"{name}._"):
            thing.__module__ = name
