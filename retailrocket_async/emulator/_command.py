"""The command line of an emulator: settings to arguments, and back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

import attrs

from ._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["arguments_of", "parser", "settings_of"]

_NONE: Final = "none"
_OPTIONAL: Final = frozenset({"limit", "seed"})


def _or_none(text: str) -> int | None:
    return None if text == _NONE else int(text)


_or_none.__name__ = "integer"  # what argparse says a wrong value is not

# What reads the text of an option, by the type of its default; a bool is a switch and has no text.
_READERS: Final[dict[object, Callable[[str], object]]] = {float: float, int: int, str: str}


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m retailrocket_async.emulator``, an option for every setting."""
    made = argparse.ArgumentParser(
        prog="python -m retailrocket_async.emulator",
        description="A strict stand-in for Retail Rocket's tracking API, for development and tests.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on")
    made.add_argument("--port", default=0, type=int, help="port to listen on; 0 for any free one")
    made.add_argument("--until-stdin-closes", action="store_true", help="stop as soon as the standard input ends")
    for field in attrs.fields(Settings):
        default: object = field.default
        read = _or_none if field.name in _OPTIONAL else _READERS.get(type(default))
        if read is None:
            made.add_argument(_option(field.name), action="store_true", help=field.metadata["help"])
        else:
            made.add_argument(_option(field.name), default=default, type=read, help=field.metadata["help"])
    return made


def settings_of(parsed: argparse.Namespace) -> Settings:
    """Return the settings among the *parsed* arguments.

    Raises:
        ValueError: a value is out of range.
    """
    return Settings(**{field.name: getattr(parsed, field.name) for field in attrs.fields(Settings)})


def arguments_of(settings: Settings) -> list[str]:
    """Return the arguments from which `parser` and `settings_of` make *settings* again."""
    arguments: list[str] = []
    for name, value in attrs.asdict(settings).items():
        if value is True:
            arguments.append(_option(name))
        elif value is not False:
            # One word, so that a key beginning with a hyphen is not taken for an option.
            arguments.append(f"{_option(name)}={_NONE if value is None else value}")
    return arguments


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
