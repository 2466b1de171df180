"""Lets public classes and functions report the package they are imported from as their module.

A repr, a traceback and a pickle then name `retailrocket_async`, not the private file that may be renamed.

`typing.get_type_hints` looks up annotations that are strings in the module that a class reports. So a file with public
attrs classes has no ``from __future__ import annotations``: its annotations are objects.
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
