"""Converts the name of a field between Python (``product_id``) and JSON (``productId``)."""

from __future__ import annotations


def camel(snake: str) -> str:
    """Return the JSON name of a field, e.g. ``"productId"`` for ``"product_id"``."""
    first, *rest = snake.split("_")
    return first + "".join(map(str.capitalize, rest))


def snake(camel: str) -> str:
    """Return the Python name of a field, e.g. ``"product_id"`` for ``"productId"``."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in camel)
