"""What is wrong with the text of a setting, in a sentence that never shows it: it may be a secret."""

from __future__ import annotations

from typing import NoReturn

from retailrocket_async._errors import ConfigurationError, type_name


def text_complaint(name: str, value: object, *, spaces: bool = False) -> str | None:
    """Return what is wrong with a setting that is a text; None if nothing is.

    Args:
        name: what the reader calls the setting.
        value: what was given.
        spaces: whether the text may have ordinary spaces inside, as names of files and keys may.
    """
    if not isinstance(value, str):
        return f"{name} must be a str that is not empty, not {type_name(value)}"
    if not value:
        return f"{name} must be a str that is not empty"
    if has_surrogates(value):
        return f"{name} must not contain a lone surrogate: it was read with the wrong encoding"
    # White space that is no ordinary space, U+00A0 for one, is not printable.
    if has_blanks(value) and not (spaces and value.isprintable() and value == value.strip()):
        return f"{name} must not hold white space or control characters: strip() it"
    return None


def has_surrogates(text: str) -> bool:
    """Whether there is a lone surrogate in a text, which has no encoding."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def has_blanks(text: str) -> bool:
    """Whether there is white space or a control character in a text."""
    return " " in text or not text.isprintable()


def check_texts(*, spaces: bool = False, **settings: object) -> None:
    """Refuse settings that are no text, empty, or hold white space or control characters; see `text_complaint`.

    Raises:
        ConfigurationError: the first complaint.
    """
    for name, value in settings.items():
        if complaint := text_complaint(name, value, spaces=spaces):
            # The frame of an error is kept with it, and some tools print its variables.
            del settings, value
            _refuse(complaint)


def _refuse(complaint: str) -> NoReturn:
    raise ConfigurationError(complaint)
