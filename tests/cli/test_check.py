"""Tests of the command `check`: it reports whether key, shop and address are right, and records no event."""

from __future__ import annotations

import json
import math
import re
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async.cli._check import describe_clock
from retailrocket_async.cli._measuring import Answer, Skew
from tests.support.command import UNWRITABLE, posix, run_command, settings_for, unwritable_output

if TYPE_CHECKING:
    from retailrocket_async.emulator import EmulatorProcess


def checked(emulator: EmulatorProcess, *arguments: str, **env: str) -> tuple[int, str]:
    """Run `check`. Return its exit status and everything it printed."""
    result = run_command("check", *arguments, env={**settings_for(emulator), **env})
    return result.exit_code, result.stdout + result.stderr


def test_everything_works(emulator: EmulatorProcess) -> None:
    """If the API accepts the key and refuses a made-up one, `check` says that the key works, and records nothing."""
    verdict = "ok: the API takes this key, for this shop, at this address (nothing was recorded)"

    status, message = checked(emulator)
    assert (0, verdict) == (status, message.splitlines()[0])
    assert [400, 401, *[400] * 5] == [request["status"] for request in emulator.requests()]
    assert 0 == emulator.stats()["total_events"]


def test_latency_and_clock(emulator: EmulatorProcess) -> None:
    """If everything works, `check` prints the latency, and says that this machine's clock is right."""
    _, latency, clock = checked(emulator)[1].splitlines()

    assert re.fullmatch(
        r"latency: \d+ ms, the median of 5 answers; the longest \d+ ms, the first one, .*, \d+ ms", latency
    )
    assert clock.startswith("clock: this machine's agrees with the API's to ")


def test_limit_that_is_enforced(emulator: EmulatorProcess) -> None:
    """If `--limit` is given, `check` measures how many requests the API accepts in a second."""
    emulator.configure(limit=10)

    message = json.loads(checked(emulator, "--limit", "--json")[1])
    assert message["works"]
    assert (10, True) == (message["limit"]["taken"], message["limit"]["refused"])
    # A second run within the same second would find the limit used up, so the emulator's count of requests is reset.
    emulator.reset()
    assert "limit: 10 requests within " in checked(emulator, "--limit")[1]


def test_json_of_a_failure(emulator: EmulatorProcess) -> None:
    """If `--json` is given, `check` prints one JSON object that agrees with the exit status."""
    status, message = checked(emulator, "--json", RETAILROCKET_API_KEY="wrong")

    assert 1 == status
    assert {"works": False, "latency": None, "clock_ahead": None, "limit": None}.items() <= json.loads(message).items()


@given(
    st.floats(-1e5, 1e5),
    st.lists(st.tuples(st.floats(1e9, 2e9), st.floats(0.001, 3.0), st.floats(0.0, 1.0)), min_size=1, max_size=9),
)
def test_skew_is_within_its_bounds(skew: float, message: list[tuple[float, float, float]]) -> None:
    """The clock's true error lies between the bounds of `Skew.of`, and more answers never widen the bounds."""
    answers = [
        Answer(sent_at=there + skew, took=took, status=400, date=float(math.floor(there + took * part)))
        for there, took, part in message
    ]

    found = [Skew.of(answers[:count]) for count in range(1, len(answers) + 1)]
    for bounds in found:
        assert bounds is not None
        # Floats of this size are exact to a quarter of a microsecond only, so the comparison allows 10 microseconds.
        assert bounds.least - 1e-5 <= skew <= bounds.most + 1e-5
    widths = [bounds.most - bounds.least for bounds in found if bounds is not None]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("skew", "message"),
    [
        (None, "not compared: the API's answers have no Date header"),
        (Skew(-0.5, 0.6), "this machine's agrees with the API's to 0.6 s; Date has whole seconds only"),
        (Skew(0.5, 1.2), "this machine's is 0.5 to 1.2 s ahead of the API's"),
        (Skew(-90, -89), "this machine's is 89.0 to 90.0 s behind the API's; set it, by NTP for example: "),
    ],
)
def test_report_on_the_clock(skew: Skew | None, message: str) -> None:
    """If the clock is wrong, the report says by how much and, if this is too much, what to do."""
    assert describe_clock(skew).startswith(message)


def test_answers_that_contradict_each_other() -> None:
    """If the clock was set between the answers, or the answers have no date, no error of the clock is reported."""
    answers = [Answer(sent_at=1e9 + skew, took=0.1, status=400, date=1e9) for skew in (0.0, 100.0)]

    assert Skew.of(answers) is None
    assert Skew.of([Answer(sent_at=1e9, took=0.1, status=400)]) is None


def test_no_limit_met(emulator: EmulatorProcess) -> None:
    """If the limit is not reached, `check` says how many requests it sent."""
    emulator.configure(limit=None)
    status, message = checked(emulator, "--limit")

    assert 0 == status
    assert "limit: not reached: all " in message


@pytest.mark.parametrize("env", [{"RETAILROCKET_API_KEY": "wrong"}, {"RETAILROCKET_PARTNER_ID": "wrong"}])
def test_wrong_credentials(emulator: EmulatorProcess, env: dict[str, str]) -> None:
    """If the key or the shop is wrong, `check` says what to correct."""
    message = "authentication failed: check RETAILROCKET_API_KEY, and that it belongs to this --partner-id"

    assert (1, f"error: {message} (HTTP 401)\n") == checked(emulator, **env)


def test_shop_without_access(emulator: EmulatorProcess) -> None:
    """If the API refuses access to the shop, the error says to ask the account manager."""
    emulator.configure(forbidden=True)
    message = "access denied: ask the account manager to open the tracking API for this shop"

    assert (1, f"error: {message} (HTTP 403)\n") == checked(emulator)


def test_wrong_path(emulator: EmulatorProcess) -> None:
    """If the path is wrong but the host is right, `check` reports a wrong address."""
    message = "no such resource: check --base-url"

    assert (1, f"error: {message} (HTTP 404)\n") == checked(emulator, "--base-url", emulator.url.replace("1.0", "2.0"))


def test_nobody_there(emulator: EmulatorProcess) -> None:
    """If no server listens at the address, `check` reports that there was no answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/1.0/"
        message = "error: no answer: check --base-url and the network (connect: ConnectError)\n"

        assert (1, message) == checked(emulator, "--base-url", address)


def test_no_answer(emulator: EmulatorProcess) -> None:
    """If `--timeout` is given, `check` waits for an answer for that many seconds."""
    emulator.add_faults([{"kind": "stall"}])

    status, message = checked(emulator, "--timeout", "0.1")
    assert (1, "error: no answer: check --base-url and the network (timeout: ") == (status, message[:61])


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "the shop's request limit is used up: lower --rate, or wait for its other processes (HTTP 429)"),
        (503, "the API failed: try again later (HTTP 503)"),
        (301, "the address redirects, and the key is never sent on: check --base-url (HTTP 301)"),
        (418, "the API refused the request (HTTP 418)"),
    ],
)
def test_other_answers(emulator: EmulatorProcess, status: int, message: str) -> None:
    """If the API answers with another status, `check` reports its meaning, and does not judge the key."""
    emulator.add_faults([{"kind": "status", "status": status}])

    assert (1, f"error: {message}\n") == checked(emulator)


@pytest.mark.parametrize("status", [200, 400])
def test_api_that_does_not_look_at_the_key(emulator: EmulatorProcess, status: int) -> None:
    """If the API accepts a made-up key, too, `check` does not say that the given key is right."""
    emulator.add_faults([{"kind": "status", "status": status, "times": 2}])
    message = "the API gave a made-up key the same answer as this one: send an event to see if the key works"

    assert (1, f"error: {message}\n") == checked(emulator)


def test_api_that_takes_the_probe(emulator: EmulatorProcess) -> None:
    """If the API records the probe event, `check` says which event was recorded."""
    emulator.add_faults([{"kind": "status", "status": 200}])
    message = "(it also accepted the probe, an event named connectionCheck)"

    status, lines = checked(emulator)
    assert (0, f"ok: the API takes this key, for this shop, at this address {message}") == (
        status,
        lines.splitlines()[0],
    )


def test_made_up_key_without_an_answer(emulator: EmulatorProcess) -> None:
    """If the request with the made-up key gets no usable answer, `check` does not judge the key."""
    emulator.add_faults([{"kind": "status", "status": 400}, {"kind": "status", "status": 503}])
    message = "the address answers, but whether the key is right is not known: the API failed: try again later"

    assert (1, f"error: {message} (HTTP 503)\n") == checked(emulator)


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ((), {"RETAILROCKET_API_KEY": ""}, "error: set the environment variable RETAILROCKET_API_KEY"),
        ((), {"RETAILROCKET_PARTNER_ID": ""}, "error: give the shop's public id: --partner-id ID"),
        (("--base-url", "apptracking"), {}, "error: --base-url must begin with https://"),
        (("--partner-id", "a b"), {}, "error: --partner-id must not hold white space or control characters\n"),
    ],
)
def test_wrong_use(emulator: EmulatorProcess, arguments: tuple[str, ...], env: dict[str, str], message: str) -> None:
    """If the configuration is wrong, `check` prints one sentence, exits with status 2, and sends nothing."""
    status, said = checked(emulator, *arguments, **env)

    assert (2, message) == (status, said[: len(message)])
    assert 0 == emulator.stats()["requests"]


@posix
@pytest.mark.parametrize(("unwritable", "complaint"), UNWRITABLE)
def test_output_that_cannot_be_written(emulator: EmulatorProcess, unwritable: str, complaint: str) -> None:
    """If standard output cannot be written, standard error has the verdict, and the exit status does not change."""
    verdict = "ok: the API takes this key, for this shop, at this address (nothing was recorded)\n"
    result = run_command("check", env=settings_for(emulator), stdout=unwritable_output(unwritable))

    assert (0, complaint + verdict) == (result.exit_code, result.stderr[: result.stderr.index("latency: ")])
