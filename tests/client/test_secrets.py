"""A program runs into every failure; every text that it writes is searched for the key and for personal data."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from retailrocket_async._spool.file_lock import FileLock
from tests.support.sinks import EVERY, INFO_LOG, KEY, OUTPUT, PERSONAL, TEXT, disguises, found_in

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.endurance

MET = {
    *("200", "301", "303", "307", "400", "401", "403", "404", "408", "413", "429", "500", "501"),
    *("name", "connect", "tls", "key", "timeout", "broken", "closed", "HTTP/2", "proxy: CONNECT shop.invalid:443"),
    *("BadRequestError", "AuthenticationError", "AccessDeniedError", "NotFoundError", "RejectedError"),
    *("AbandonedError", "ThrottledError", "ServerError", "NoAnswerError", "CancelledError"),
    *("ConfigurationError", "EventValidationError", "BufferFullError", "FlushTimeoutError"),
    *("ClientClosedError", "WrongLoopError"),
    *("check: 0", "check: 1", "check: 2", "send: 1", "send: 2", "--help: 0", "nonsense: 2"),
    *("crashed: 1", "interrupted: 130", "HandleTimeoutError"),
}


def _run(what: str, folder: Path) -> dict[str, Any]:
    """Run `every_failure`, a program that records its outputs. Return these outputs and the failures that occurred."""
    collected = folder / f"{what}.json"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.every_failure", what, collected],
        cwd=Path(__file__).parents[2],
        # With this setting OpenTelemetry records spans by both the old and the new semantic conventions.
        env={**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup"},
        capture_output=True,
        text=True,
        # A run that hangs must fail here, before the time limit of the whole test ends the test.
        timeout=110,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    result: dict[str, Any] = json.loads(collected.read_text("utf-8"))
    result["texts"][OUTPUT] = [output]
    return result


def _run_once(name: str, factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run a program once and share the result with all parallel pytest processes: one run takes half a minute."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    place = factory.getbasetemp() if alone else factory.getbasetemp().parent
    path = place / f"{name}.json"
    with nullcontext() if alone else FileLock(place / f"{name}.lock").held():
        if not path.exists():
            path.write_text(json.dumps(_run(name, factory.mktemp(name))), "utf-8")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the recorded texts of a program that runs into every failure."""
    return _run_once("survive", tmp_path_factory)


@pytest.fixture(scope="module")
def leaked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the recorded texts of a program that leaks the key and personal data on purpose."""
    return _run_once("leak", tmp_path_factory)


def _places(texts: Iterable[str], secret: str) -> set[str]:
    return {place for text in texts for place in found_in(text, secret)}


def test_no_sink_has_the_key(survived: dict[str, Any]) -> None:
    """If the run meets every failure, no log, error, traceback, repr, span, event, dump or output contains the key."""
    places = {sink: _places(texts, KEY) for sink, texts in survived["texts"].items()}

    assert {} == {sink: found for sink, found in places.items() if found}


def test_the_run_meets_every_failure(survived: dict[str, Any]) -> None:
    """If the program ends, it has met every status, failure and error class in `MET`, and has followed no redirect."""
    met = set(survived["met"])

    assert MET - met == set()
    assert "followed a redirect" not in met


def test_the_run_fills_the_sinks(survived: dict[str, Any]) -> None:
    """If the program has run, every place that the program writes to contains text, except warnings and the output."""
    empty = EVERY - {sink for sink, texts in survived["texts"].items() if any(texts)}

    # The program causes no warnings and prints nothing.
    assert {"warnings", OUTPUT} >= empty


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_data_is_in_no_record_from_info_up(name: str, survived: dict[str, Any]) -> None:
    """If events contain personal data, no error and no log record at INFO or above contains the data."""
    texts = survived["texts"]

    assert _places([*texts[INFO_LOG], *texts[TEXT]], PERSONAL[name]) == set()


@pytest.mark.parametrize("sink", sorted(EVERY))
def test_a_leak_would_be_found(sink: str, leaked: dict[str, Any]) -> None:
    """If a program leaks the key, the search finds the key in every place that the program writes to."""
    assert _places(leaked["texts"].get(sink, []), KEY) != set()


@pytest.mark.parametrize("name", PERSONAL)
def test_a_leak_of_personal_data_would_be_found(name: str, leaked: dict[str, Any]) -> None:
    """If a program logs personal data, the search finds it in the log."""
    assert _places(leaked["texts"][INFO_LOG], PERSONAL[name]) != set()


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY[:8],
        quote(KEY),
        json.dumps({"key": KEY}),
        repr({"key": KEY}),
        repr(KEY.encode()),
        KEY.encode().hex(),
        base64.b64encode(KEY.encode()).decode(),
        base64.b64encode(f"partner:{KEY}".encode()).decode(),
        base64.urlsafe_b64encode(f"a partner:{KEY}, and more".encode()).decode(),
        base64.b64encode(f"apiKey={KEY}&".encode()).decode(),
    ],
)
def test_disguises_are_seen_through(text: str) -> None:
    """If the key is written in any common encoding, the search finds it."""
    assert found_in(f"... {text} ...", KEY) != set()


def test_innocent_text_is_no_leak() -> None:
    """If a text does not contain the key, the search finds nothing: it ignores matches of fewer than 8 characters."""
    assert min(map(len, disguises(KEY))) >= 8
    assert found_in("POST https://shop.test/1.0/view partner 200 OK", KEY) == set()
