"""The settings of an emulator, as a record and as command-line arguments."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from retailrocket_async.emulator import Settings
from retailrocket_async.emulator.__main__ import main
from retailrocket_async.emulator._command import arguments_of, parser, settings_of

ODD = Settings(
    api_key="-k=1 2",
    partner_id="p",
    limit=None,
    per=0.25,
    latency=1e-05,
    batch_latency=2.5,
    arrival_jitter=2,
    seed=-3,
    max_body_bytes=1,
    allow_unknown_events=True,
    forbidden=True,
    strict_order=True,
    keep=7,
)


def test_defaults_are_those_of_the_contract() -> None:
    """If no settings are given, the limit is the contract's 50 requests per second."""
    settings = Settings()

    assert (50, 1.0, 8_388_608, 200_000) == (settings.limit, settings.per, settings.max_body_bytes, settings.keep)


def test_a_test_does_not_wait_for_batches() -> None:
    """If a program makes settings, batches are answered at once; an emulator of the command line takes 0.3 s."""
    by_hand = settings_of(parser().parse_args([]))

    assert (0.0, 0.3) == (Settings().batch_latency, by_hand.batch_latency)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", ""),
        ("api_key", None),
        ("partner_id", 1),
        ("limit", 0),
        ("limit", True),
        ("limit", 1.0),
        ("per", 0),
        ("per", -1.0),
        ("per", "1"),
        ("latency", -0.1),
        ("latency", float("nan")),
        ("latency", float("inf")),
        ("latency", True),
        ("batch_latency", -1),
        ("batch_latency", "1"),
        ("strict_order", 1),
        ("arrival_jitter", None),
        ("seed", 1.5),
        ("max_body_bytes", 0),
        ("max_body_bytes", None),
        ("allow_unknown_events", 1),
        ("forbidden", "no"),
        ("keep", 0),
    ],
)
def test_wrong_values_are_refused_at_birth(name: str, value: object) -> None:
    """If a setting has a wrong type or is out of range, the error names the setting."""
    settings: dict[str, Any] = {name: value}

    with pytest.raises(ValueError, match=f"^{name} must be "):
        Settings(**settings)


def test_settings_are_frozen() -> None:
    """If a setting is assigned, an error is raised."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().limit = 1  # type: ignore[misc]


def test_some_settings_change_at_run_time() -> None:
    """If `changed` is called, it returns a copy with the new values."""
    expected = Settings(api_key="new", limit=None, latency=1)

    assert expected == Settings().changed(api_key="new", limit=None, latency=1)


@pytest.mark.parametrize("changes", [{"keep": 1}, {"nonsense": 1}, {"self": 1}, {"limit": 0}])
def test_other_settings_do_not_change_at_run_time(changes: dict[str, object]) -> None:
    """If a setting is unknown, has a wrong value or cannot be changed at run time, `changed` raises `ValueError`."""
    with pytest.raises(ValueError, match=r"cannot change|must be"):
        Settings().changed(**changes)


def test_the_key_is_not_shown() -> None:
    """If `shown` is called, it returns all settings except the key."""
    shown = Settings(api_key="secret").shown()

    assert ("dev-partner", False) == (shown["partner_id"], "api_key" in shown)


@pytest.mark.parametrize("settings", [Settings(), ODD])
def test_arguments_carry_every_setting(settings: Settings) -> None:
    """If settings are written as command-line arguments and parsed again, the result equals the settings."""
    assert settings == settings_of(parser().parse_args(arguments_of(settings)))


def test_no_arguments_are_the_defaults() -> None:
    """If there are no arguments, the settings are the defaults of the command, on loopback only."""
    parsed = parser().parse_args([])

    assert (Settings(batch_latency=0.3), "127.0.0.1", 0) == (settings_of(parsed), parsed.host, parsed.port)


@pytest.mark.parametrize("argument", ["--limit=0", "--limit=many", "--per=0", "--nonsense", "--port=x"])
def test_wrong_arguments_end_the_command(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If an argument is wrong, the command exits with status 2 and a message on standard error."""
    with pytest.raises(SystemExit) as caught:
        main([argument])

    assert (2, True) == (caught.value.code, argument.partition("=")[0].strip("-") in capsys.readouterr().err)
