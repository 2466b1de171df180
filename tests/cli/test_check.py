"""``check``: right and wrong credentials and addresses are told apart, and nothing is recorded."""

from __future__ import annotations

import json
import math
import re
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async.cli._check import _clock
from retailrocket_async.cli._measuring import Answer, Skew
from retailrocket_async.emulator import EmulatorProcess, emulator_process
from tests.cli.test_cli import FULL, GONE, MAIN, NO_SPACE, finished, invoke, settings_for

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
    process.configure(forbidden=False, limit=50)


def checked(emulator: EmulatorProcess, *arguments: str, **env: str) -> tuple[int, str]:
    """Return the status of a check and the one line that it printed."""
    result = invoke("check", *arguments, env={**settings_for(emulator), **env})
    return result.exit_code, result.stdout + result.stderr


def test_everything_works(emulator: EmulatorProcess) -> None:
    """A key that is let in is told so, on the strength of a made-up key that is not; nothing is recorded."""
    verdict = "ok: the API takes this key, for this shop, at this address (nothing was recorded)"

    status, told = checked(emulator)
    assert (0, verdict) == (status, told.splitlines()[0])
    assert [400, 401, *[400] * 5] == [request["status"] for request in emulator.requests()]
    assert 0 == emulator.stats()["total_events"]


def test_latency_and_clock(emulator: EmulatorProcess) -> None:
    """Where all is well it is told how long answers take, and that the clock of the same machine is right."""
    _, latency, clock = checked(emulator)[1].splitlines()

    assert re.fullmatch(
        r"latency: \d+ ms, the median of 5 answers; the longest \d+ ms, the first one, .*, \d+ ms", latency
    )
    assert clock.startswith("clock: this machine's agrees with the API's, as far as its whole seconds tell: to ")


def test_limit_that_is_enforced(emulator: EmulatorProcess) -> None:
    """Asked to, the check finds out how many requests a second are let in."""
    emulator.configure(limit=10)

    told = json.loads(checked(emulator, "--limit", "--json")[1])
    assert told["works"]
    assert (10, True) == (told["limit"]["taken"], told["limit"]["refused"])
    # Its window forgets the first run: a second one within a second would find the limit used up.
    emulator.reset()
    assert "limit: 10 requests within " in checked(emulator, "--limit")[1]


def test_json_of_a_failure(emulator: EmulatorProcess) -> None:
    """A script reads the verdict, and the status says the same."""
    status, told = checked(emulator, "--json", RETAILROCKET_API_KEY="wrong")

    assert 1 == status
    assert {"works": False, "latency": None, "clock_ahead": None, "limit": None}.items() <= json.loads(told).items()


@given(
    st.floats(-1e5, 1e5),
    st.lists(st.tuples(st.floats(1e9, 2e9), st.floats(0.001, 3.0), st.floats(0.0, 1.0)), min_size=1, max_size=9),
)
def test_skew_is_within_its_bounds(skew: float, told: list[tuple[float, float, float]]) -> None:
    """Whatever the answers, the true skew lies between the bounds, and more answers never widen them."""
    answers = [
        Answer(sent_at=there + skew, took=took, status=400, date=float(math.floor(there + took * part)))
        for there, took, part in told
    ]

    found = [Skew.of(answers[:count]) for count in range(1, len(answers) + 1)]
    for bounds in found:
        assert bounds is not None
        # Floats of this size know a quarter of a microsecond.
        assert bounds.least - 1e-5 <= skew <= bounds.most + 1e-5
    widths = [bounds.most - bounds.least for bounds in found if bounds is not None]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("skew", "told"),
    [
        (None, "the answers do not say what time it is there"),
        (Skew(-0.5, 0.6), "this machine's agrees with the API's, as far as its whole seconds tell: to 0.6 s"),
        (Skew(0.5, 1.2), "this machine's is 0.5 to 1.2 s ahead of the API's"),
        (Skew(-90, -89), "this machine's is 89.0 to 90.0 s behind the API's; set it, by NTP for example: "),
    ],
)
def test_what_is_told_of_the_clock(skew: Skew | None, told: str) -> None:
    """A clock that is wrong by so much that it matters is told with what to do."""
    assert _clock(skew).startswith(told)


def test_answers_that_contradict_each_other() -> None:
    """A clock that was set in mid-way is no base for a figure, nor is an answer without a date."""
    answers = [Answer(sent_at=1e9 + skew, took=0.1, status=400, date=1e9) for skew in (0.0, 100.0)]

    assert Skew.of(answers) is None
    assert Skew.of([Answer(sent_at=1e9, took=0.1, status=400)]) is None


def test_no_limit_met(emulator: EmulatorProcess) -> None:
    """Without a limit the burst comes to its end, and says how large it was."""
    emulator.configure(limit=None)
    status, told = checked(emulator, "--limit")

    assert 0 == status
    assert "limit: none was met: all " in told


@pytest.mark.parametrize("env", [{"RETAILROCKET_API_KEY": "wrong"}, {"RETAILROCKET_PARTNER_ID": "wrong"}])
def test_wrong_credentials(emulator: EmulatorProcess, env: dict[str, str]) -> None:
    """A wrong key or a wrong shop is told with what to mend."""
    told = "authentication failed: check RETAILROCKET_API_KEY, and that it belongs to this --partner-id"

    assert (1, f"error: {told} (HTTP 401)\n") == checked(emulator, **env)


def test_shop_without_access(emulator: EmulatorProcess) -> None:
    """A shop that may not use the API is sent to the account manager."""
    emulator.configure(forbidden=True)
    told = "access denied: ask the account manager to open the tracking API for this shop"

    assert (1, f"error: {told} (HTTP 403)\n") == checked(emulator)


def test_wrong_path(emulator: EmulatorProcess) -> None:
    """An address that leads to another place of the right machine is told as such."""
    told = "no such resource: check --base-url"

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

    status, lines = checked(emulator)
    assert (0, f"ok: the API takes this key, for this shop, at this address {told}") == (status, lines.splitlines()[0])


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

    status, out, err = finished("check", env=settings_for(emulator), code=f"{output}; {MAIN}")
    assert (0, "", complaint + told) == (status, out, err[: err.index("latency: ")])
