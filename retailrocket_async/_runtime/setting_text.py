"""Checks settings that are texts, with messages that never show the text: it may be a secret."""

from __future__ import annotations

from typing import NoReturn

from retailrocket_async._errors import ConfigurationError, type_name


def text_complaint(name: str, value: object, *, spaces: bool = False) -> str | None:
    """Return the rule that a text setting breaks, or None if the setting is valid.

    Args:
        name: the setting's name, as the reader of the message knows it.
        value: the setting.
        spaces: whether the text may have ordinary spaces inside, as names of files and keys may.
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
    """Whether a text has a lone surrogate, which cannot be encoded."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def has_blanks(text: str) -> bool:
    """Whether a text has white space or a control character."""
    return " " in text or not text.isprintable()


def check_texts(*, spaces: bool = False, **settings: object) -> None:
    """Check that settings are texts that are not empty and have no white space or control characters.

    Args:
        spaces: as of `text_complaint`.
        settings: the settings by their names.

    Raises:
        ConfigurationError: one of them breaks a rule.
    """
    for name, value in settings.items():
        if complaint := text_complaint(name, value, spaces=spaces):
            # An error keeps this frame alive, and some tools print its variables.
            del settings, value
            _refuse(complaint)


def _refuse(complaint: str) -> NoReturn:
    raise ConfigurationError(complaint)
