"""Parses the emulator's command line into settings, and writes settings as arguments."""

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
"""The environment variable with the key, used without ``--api-key``. Every user of the machine can read arguments."""

_NONE: Final = "none"
_SECRET: Final = "api_key"  # noqa: S105 - the name of the setting
_OPTIONAL: Final = frozenset({"limit", "seed"})


def _or_none(text: str) -> int | None:
    return None if text == _NONE else int(text)


_or_none.__name__ = "integer"  # argparse prints this name if the value is wrong

# Maps the type of an option's default to the function that parses the option's text. An option of type bool is a switch
# without a text.
_READERS: Final[dict[object, Callable[[str], object]]] = {float: float, int: int, str: str}


def parser() -> argparse.ArgumentParser:
    """Return the argument parser, with an option for every setting.

    An option's default is the setting's ``command`` in the metadata, or else the setting's own default.
    """
    made = argparse.ArgumentParser(
        prog="python -m retailrocket_async.emulator",
        description="A strict stand-in for Retail Rocket's tracking API, for development and tests.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on")
    made.add_argument("--port", default=0, type=int, help="port to listen on; 0 for any free one")
    made.add_argument("--until-stdin-closes", action="store_true", help="stop when the standard input ends")
    for field in attrs.fields(Settings):
        if field.name == _SECRET:
            text = f"{field.metadata['help']}; default: the value of {API_KEY}, or else {field.default}"
            # The help prints defaults, so the environment's key must not be the default of this option.
            made.add_argument(_option(field.name), default=argparse.SUPPRESS, help=text)
            continue
        default: object = field.metadata.get("command", field.default)
        read = _or_none if field.name in _OPTIONAL else _READERS.get(type(default))
        if read is None:
            made.add_argument(_option(field.name), action="store_true", help=field.metadata["help"])
        else:
            made.add_argument(_option(field.name), default=default, type=read, help=field.metadata["help"])
    return made


def settings_of(parsed: argparse.Namespace) -> Settings:
    """Return the settings that the *parsed* arguments describe.

    Raises:
        ValueError: a value is out of range.
    """
    given: dict[str, Any] = vars(parsed)
    if _SECRET not in given and API_KEY in os.environ:
        given = {**given, _SECRET: os.environ[API_KEY]}
    names = {field.name for field in attrs.fields(Settings)}
    return Settings(**{name: value for name, value in given.items() if name in names})


def arguments_of(settings: Settings, *, with_key: bool = True) -> list[str]:
    """Return the arguments that `parser` and `settings_of` turn into *settings*.

    Args:
        settings: the settings.
        with_key: whether to include the key; default True. If False, the key must be in the environment variable that
            the constant `API_KEY` names.
    """
    arguments: list[str] = []
    for name, value in attrs.asdict(settings).items():
        if name == _SECRET and not with_key:
            continue
        if value is True:
            arguments.append(_option(name))
        elif value is not False:
            # Name and value are one argument, so that a key that begins with a hyphen is not parsed as an option.
            arguments.append(f"{_option(name)}={_NONE if value is None else value}")
    return arguments


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
