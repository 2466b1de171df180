"""The command line of an emulator: settings to arguments, and back."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from ._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["API_KEY", "arguments_of", "parser", "settings_of"]

API_KEY: Final = "RETAILROCKET_EMULATOR_API_KEY"
"""The environment variable that holds the key where no argument does: arguments are for everyone to read."""

_NONE: Final = "none"
_SECRET: Final = "api_key"  # noqa: S105 - the name of the setting
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
        if field.name == _SECRET:
            told = f"{field.metadata['help']}; else it is that of {API_KEY}, else {field.default}"
            # Without a default: the help would show the one of the environment.
            made.add_argument(_option(field.name), default=argparse.SUPPRESS, help=told)
            continue
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
    given: dict[str, Any] = vars(parsed)
    if _SECRET not in given and API_KEY in os.environ:
        given = {**given, _SECRET: os.environ[API_KEY]}
    names = {field.name for field in attrs.fields(Settings)}
    return Settings(**{name: value for name, value in given.items() if name in names})


def arguments_of(settings: Settings, *, with_key: bool = True) -> list[str]:
    """Return the arguments from which `parser` and `settings_of` make *settings* again.

    Args:
        settings: to be made again.
        with_key: False leaves out the key, which then is to be in the environment.
    """
    arguments: list[str] = []
    for name, value in attrs.asdict(settings).items():
        if name == _SECRET and not with_key:
            continue
        if value is True:
            arguments.append(_option(name))
        elif value is not False:
            # One word, so that a key beginning with a hyphen is not taken for an option.
            arguments.append(f"{_option(name)}={_NONE if value is None else value}")
    return arguments


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
