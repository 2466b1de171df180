"""Checks settings that are strings. The messages never show the value, because the value may be a secret."""

from __future__ import annotations

from typing import NoReturn

from retailrocket_async._errors import ConfigurationError, type_name


def text_complaint(name: str, value: object, *, spaces: bool = False) -> str | None:
    """Return the rule that a text setting breaks, or None if the setting is valid.

    Args:
        name: the setting's name for the message, as the user spells it.
        value: the setting's value.
        spaces: whether the text may contain ordinary spaces, though not at its ends, for example in a file name.
    """
    if not isinstance(value, str):
        return f"{name} must be a str that is not empty, not {type_name(value)}"
    if not value:
        return f"{name} must be a str that is not empty"
    if has_surrogates(value):
        return f"{name} must not contain a lone surrogate: it was read with the wrong encoding"
    # White space other than the ordinary space, such as U+00A0, is not printable.
    if has_blanks(value) and not (spaces and value.isprintable() and value == value.strip()):
        return f"{name} must not hold white space or control characters: strip() it"
    return None


def has_surrogates(text: str) -> bool:
    """Whether a text contains a lone surrogate, a character that UTF-8 cannot encode."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def has_blanks(text: str) -> bool:
    """Whether a text contains white space or a control character."""
    return " " in text or not text.isprintable()


def check_texts(*, spaces: bool = False, **settings: object) -> None:
    """Check that settings are strings that are not empty and contain no white space or control characters.

    Args:
        spaces: whether the texts may contain ordinary spaces; see `text_complaint`.
        settings: the values of the settings, by name.

    Raises:
        ConfigurationError: a setting breaks one of these rules.
    """
    for name, value in settings.items():
        if complaint := text_complaint(name, value, spaces=spaces):
            # The error's traceback refers to this frame, and some tools print the variables of frames.
            del settings, value
            _refuse(complaint)


def _refuse(complaint: str) -> NoReturn:
    raise ConfigurationError(complaint)
