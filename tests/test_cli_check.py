"""``check``: right and wrong credentials and addresses are told apart, and nothing is recorded."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import EmulatorProcess, emulator_process
from tests.test_cli import FULL, GONE, MAIN, NO_SPACE, finished, invoke, settings_for

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="module")
def process() -> Generator[EmulatorProcess]:
    """An emulator in a process of its own."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(process: EmulatorProcess) -> Generator[EmulatorProcess]:
    """The emulator, with nothing in it and nothing going wrong."""
    process.reset()
    yield process
    process.configure(forbidden=False)


def checked(emulator: EmulatorProcess, *arguments: str, **env: str) -> tuple[int, str]:
    """Return the status of a check and the one line that it printed."""
    result = invoke("check", *arguments, env={**settings_for(emulator), **env})
    return result.exit_code, result.stdout + result.stderr


def test_everything_works(emulator: EmulatorProcess) -> None:
    """A key that is let in is told so, on the strength of a made-up key that is not; nothing is recorded."""
    told = "ok: the API takes this key, for this shop, at this address (nothing was recorded)\n"

    assert (0, told) == checked(emulator)
    assert [401, 400] == sorted((request["status"] for request in emulator.requests()), reverse=True)
    assert 0 == emulator.stats()["total_events"]


@pytest.mark.parametrize("env", [{"RETAILROCKET_API_KEY": "wrong"}, {"RETAILROCKET_PARTNER_ID": "wrong"}])
def test_wrong_credentials(emulator: EmulatorProcess, env: dict[str, str]) -> None:
    """A wrong key or a wrong shop is told with what to mend."""
    told = "authentication failed: check RETAILROCKET_API_KEY, and that the key belongs to this --partner-id"

    assert (1, f"error: {told} (HTTP 401)\n") == checked(emulator, **env)


def test_shop_without_access(emulator: EmulatorProcess) -> None:
    """A shop that may not use the API is sent to the account manager."""
    emulator.configure(forbidden=True)
    told = "access denied: ask the account manager to open the tracking API for this shop"

    assert (1, f"error: {told} (HTTP 403)\n") == checked(emulator)


def test_wrong_path(emulator: EmulatorProcess) -> None:
    """An address that leads to another place of the right machine is told as such."""
    told = "there is no such resource: check --base-url, which ends in /1.0/"

    assert (1, f"error: {told} (HTTP 404)\n") == checked(emulator, "--base-url", emulator.url.replace("1.0", "2.0"))


def test_nobody_there(emulator: EmulatorProcess) -> None:
    """An address where nobody listens is told as such."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/1.0/"
        told = "error: no answer: check --base-url and the network (connect: ConnectError)\n"

        assert (1, told) == checked(emulator, "--base-url", address)


def test_no_answer(emulator: EmulatorProcess) -> None:
    """A machine that takes the request and says nothing is waited for as long as the option says."""
    emulator.add_faults([{"kind": "stall"}])

    status, told = checked(emulator, "--timeout", "0.1")
    assert (1, "error: no answer: check --base-url and the network (timeout: ") == (status, told[:61])


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (429, "the shop's request limit is used up: lower --rate, or wait for its other processes (HTTP 429)"),
        (503, "the API failed: try again later (HTTP 503)"),
        (301, "the address redirects, and the key is never sent on: check --base-url (HTTP 301)"),
        (418, "the API refused the request (HTTP 418)"),
    ],
)
def test_other_answers(emulator: EmulatorProcess, status: int, told: str) -> None:
    """Other answers are no verdict on the key, and say what they are."""
    emulator.add_faults([{"kind": "status", "status": status}])

    assert (1, f"error: {told}\n") == checked(emulator)


@pytest.mark.parametrize("status", [200, 400])
def test_api_that_does_not_look_at_the_key(emulator: EmulatorProcess, status: int) -> None:
    """Where a made-up key is treated like the given one, the check does not claim that the key is right."""
    emulator.add_faults([{"kind": "status", "status": status, "times": 2}])
    told = "the address answers, but to a made-up key as to this one: send an event to see whether the key works"

    assert (1, f"error: {told}\n") == checked(emulator)


def test_api_that_takes_the_probe(emulator: EmulatorProcess) -> None:
    """Where the API accepts a name that no event has, the check says what it left there."""
    emulator.add_faults([{"kind": "status", "status": 200}])
    told = "(it also accepted the probe, an event named connectionCheck)"

    assert (0, f"ok: the API takes this key, for this shop, at this address {told}\n") == checked(emulator)


def test_made_up_key_without_an_answer(emulator: EmulatorProcess) -> None:
    """Without an answer for the made-up key nothing is claimed."""
    emulator.add_faults([{"kind": "status", "status": 400}, {"kind": "status", "status": 503}])
    told = "the address answers; whether it takes the key could not be found out: the API failed: try again later"

    assert (1, f"error: {told} (HTTP 503)\n") == checked(emulator)


@pytest.mark.parametrize(
    ("arguments", "env", "told"),
    [
        ((), {"RETAILROCKET_API_KEY": ""}, "error: set the environment variable RETAILROCKET_API_KEY"),
        ((), {"RETAILROCKET_PARTNER_ID": ""}, "error: give the shop's public id: --partner-id ID"),
        (("--base-url", "apptracking"), {}, "error: --base-url must begin with https://"),
        (("--partner-id", "a b"), {}, "error: --partner-id must not hold white space or control characters\n"),
    ],
)
def test_wrong_use(emulator: EmulatorProcess, arguments: tuple[str, ...], env: dict[str, str], told: str) -> None:
    """Wrong configuration is a sentence and status 2, and nothing is sent."""
    status, said = checked(emulator, *arguments, **env)

    assert (2, told) == (status, said[: len(told)])
    assert 0 == emulator.stats()["requests"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX devices")
@pytest.mark.parametrize(("output", "complaint"), [(GONE, ""), (FULL, NO_SPACE)])
def test_output_that_takes_nothing(emulator: EmulatorProcess, output: str, complaint: str) -> None:
    """Where the output takes nothing the verdict is on the other one, and the status is the verdict's."""
    told = "ok: the API takes this key, for this shop, at this address (nothing was recorded)\n"

    assert (0, "", complaint + told) == finished("check", env=settings_for(emulator), code=f"{output}; {MAIN}")
