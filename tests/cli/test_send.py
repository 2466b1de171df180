"""Tests of the command `send`: every event is recorded once and in order, or is reported and written to a rejects file.

The rejects file has the events that were not delivered, and the lines that are not events.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import stat
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import AsyncTrackingClient, Batching, Buffer
from retailrocket_async.cli._clickstream import Clickstream
from retailrocket_async.cli._delivery import Delivery
from retailrocket_async.cli._lines import Lines
from retailrocket_async.cli._reading import Source
from retailrocket_async.cli._rejects import Rejects
from retailrocket_async.cli._terminal import Meter
from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process, running_emulator
from tests.support.clickstream import HEADER, clickstream, rows
from tests.support.command import (
    FULL,
    GONE,
    MAIN,
    NO_SPACE,
    UNWRITABLE,
    feed,
    finished,
    on_a_terminal,
    posix,
    run_command,
    settings_for,
    started,
    unwritable_output,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REAL = Path(__file__).parents[3] / "shared" / "data" / "events_5000visitors.csv"
NAMES = {"view": "view", "addtocart": "addToBasket", "transaction": "order"}

WITHOUT_INPUT = (
    "import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, '-m', 'retailrocket_async', *sys.argv[1:]])"
)


def until(holds: Callable[[], object]) -> None:
    """Poll until `holds` returns True; if it never does, the test's time limit ends the loop."""
    while not holds():
        # Without a pause the requests to the emulator would slow down the command that the test waits for.
        time.sleep(0.02)


def lines_of(source: Source) -> Lines:
    """Return a parser for the lines of this input."""
    return Lines(source.name, Clickstream(1, 1), allow_custom=False)


def views(count: int) -> bytes:
    """Return JSON Lines with `count` views."""
    envelope = '{{"view":{{"sessionExternalId":"s{0}","timestamp":"2025-01-31T09:30:00+00:00","productId":{0}}}}}\n'
    return "".join(envelope.format(number) for number in range(count)).encode()


def recorded(emulator: EmulatorProcess) -> dict[str, list[tuple[str, int]]]:
    """Return the recorded events by visitor, in order."""
    acts: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for event in emulator.events():
        acts[event["fields"]["sessionExternalId"]].append((event["name"], event["fields"]["productId"]))
    return dict(acts)


def meant(lines: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Return the events that these rows describe, by visitor and in order."""
    acts: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for line in lines:
        _, visitor, kind, item, _ = line.split(",")
        acts[visitor].append((NAMES[kind], int(item)))
    return dict(acts)


def figure(table: str, name: str) -> int:
    """Return the number beside `name` in the table that a command printed."""
    found = re.search(rf"{re.escape(name)} +([\d,]+)", table)
    assert found is not None, table
    return int(found[1].replace(",", ""))


def count_of(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_bytes().splitlines())


def test_clickstream(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If a clickstream file (CSV) is sent, every row is recorded once and in order, with few requests."""
    made = rows(5_000)
    path = tmp_path / "events.csv"
    path.write_bytes(clickstream(made))
    result = run_command("send", path, env=settings_for(emulator))
    stats = emulator.stats()

    assert result.exit_code == 0, result.stderr
    assert meant(made) == recorded(emulator)
    assert (0, 0) == (stats["over_limit"], stats["refused"])
    assert stats["requests"] < 50
    assert figure(result.stdout, "delivered") == 5_000


@pytest.mark.skipif(not REAL.exists(), reason="the real clickstream is not here")
def test_real_clickstream(emulator: EmulatorProcess) -> None:
    """If the real clickstream file is sent, all its events are recorded once, in order, within the limit."""
    result = run_command("send", REAL, env=settings_for(emulator))
    stats = emulator.stats()

    assert result.exit_code == 0, result.stderr
    assert meant(REAL.read_text("utf-8").splitlines()[1:]) == recorded(emulator)
    assert {"view": 9_076, "addToBasket": 263, "order": 46} == stats["events"]
    assert (0, 0) == (stats["over_limit"], stats["refused"])
    assert stats["requests"] < 100


def test_order_is_kept_when_requests_fail(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If requests fail and are retried, each visitor's events are still recorded in order."""
    made = rows(3_000)
    path = tmp_path / "events.csv"
    path.write_bytes(clickstream(made))
    emulator.add_faults([{"kind": "status", "status": 503, "times": 4}, {"kind": "reset_before", "times": 2}])
    result = run_command("send", path, env=settings_for(emulator))

    assert result.exit_code == 0, result.stderr
    assert meant(made) == recorded(emulator)
    assert figure(result.stdout, "of them retries") == 6


def test_orders_have_the_price_and_quantity_of_the_options(emulator: EmulatorProcess) -> None:
    """If rows are orders, the events get the price and quantity that `--price` and `--quantity` give."""
    row = clickstream(["1430622120563,7,transaction,1,4000"])
    run_command("send", "-", "--price", "9.90", "--quantity", "2.5", env=settings_for(emulator), stdin=row)
    [event] = emulator.events()

    expected = {
        "sessionExternalId": "7",
        "timestamp": "2015-05-03T03:02:00+00:00",
        "productId": 1,
        "quantity": 2.5,
        "price": 9.9,
        "transaction": "4000",
    }
    assert expected == event["fields"]


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_standard_input(emulator: EmulatorProcess, packed: Callable[[bytes], bytes]) -> None:
    """If the input is standard input, it is read like a file, gzipped or not."""
    result = run_command("send", "-", env=settings_for(emulator), stdin=packed(views(3)))

    assert result.exit_code == 0, result.stderr
    assert 3 == figure(result.stdout, "delivered") == emulator.stats()["total_events"]


def test_slow_pipe_is_sent_as_it_comes(emulator: EmulatorProcess) -> None:
    """If events arrive in a slow pipe, they are sent while the pipe is still open."""
    with started("send", "-", env=settings_for(emulator)) as process:
        feed(process, views(3))
        until(lambda: emulator.stats()["total_events"] == 3)
        process.communicate(views(2))

    assert (0, 5) == (process.returncode, emulator.stats()["total_events"])


def test_several_files_of_both_kinds(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If several files are given, they are sent one after the other, whatever their formats."""
    first, second = tmp_path / "first.csv.gz", tmp_path / "second.jsonl"
    first.write_bytes(gzip.compress(clickstream(rows(10))))
    second.write_bytes(views(5))
    result = run_command("send", first, second, env=settings_for(emulator))

    assert (0, 15) == (result.exit_code, emulator.stats()["total_events"])


def test_nothing_to_send(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If a file is empty, no request is made, and the exit status is 0."""
    path = tmp_path / "empty"
    path.touch()
    result = run_command("send", path, env=settings_for(emulator))

    assert (0, 0) == (result.exit_code, emulator.stats()["requests"])


def test_custom_events(tmp_path: Path) -> None:
    """If an event's name is unknown, it is sent only with `--allow-custom`, and is otherwise a bad line."""
    line = b'{"wishlist":{"sessionExternalId":"a1"}}\n'
    with emulator_process(Settings(allow_unknown_events=True)) as emulator:
        refused = run_command("send", "-", env=settings_for(emulator), stdin=line)
        sent = run_command("send", "-", "--allow-custom", env=settings_for(emulator), stdin=line)

        assert (1, 0) == (refused.exit_code, sent.exit_code)
        assert {"wishlist": 1} == emulator.stats()["events"]


def test_undocumented_fields() -> None:
    """If an event has a field that is not documented, it is sent only with `--allow-extra`, with the field."""
    line = b'{"view":{"sessionExternalId":"a1","productId":1,"link":{"name":"crm"}}}\n'
    with emulator_process(Settings(allow_unknown_fields=True)) as emulator:
        refused = run_command("send", "-", "--allow-custom", env=settings_for(emulator), stdin=line)
        sent = run_command("send", "-", "--allow-extra", env=settings_for(emulator), stdin=line)

        assert (1, 0) == (refused.exit_code, sent.exit_code)
        assert "view has unknown fields: 'link'" in refused.stderr
        assert {"view": 1} == emulator.stats()["events"]


def test_an_event_that_must_be_sent_alone(emulator: EmulatorProcess) -> None:
    """If no batch may hold an event of a file, the event is sent to its own endpoint."""
    alone = b'{"categoryViewByCategoryPath":{"sessionExternalId":"a1","categoryPath":"a/b"}}\n'
    result = run_command("send", "-", env=settings_for(emulator), stdin=views(2) + alone + views(1))

    assert (0, {"view": 3, "categoryViewByCategoryPath": 1}) == (result.exit_code, emulator.stats()["events"])


def test_bad_lines_do_not_hold_up_good_ones(emulator: EmulatorProcess) -> None:
    """If some lines are bad, they are printed, the good ones are delivered, and the exit status is 1."""
    result = run_command("send", "-", env=settings_for(emulator), stdin=views(2) + b"oops\n" + views(1))

    assert (1, 3) == (result.exit_code, emulator.stats()["total_events"])
    assert "bad line <stdin>:3: is neither an envelope" in result.stderr
    assert figure(result.stdout, "bad lines") == 1


def test_only_the_first_bad_lines_are_printed(emulator: EmulatorProcess) -> None:
    """If many lines are bad, only the first twenty are printed."""
    result = run_command("send", "-", env=settings_for(emulator), stdin=b"oops\n" * 1_000)

    assert 20 == result.stderr.count("bad line <stdin>")
    assert "--dry-run lists them all" in result.stderr


def test_damaged_file_is_reported_and_the_next_one_sent(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If a file is damaged, its readable part and the next files are sent."""
    damaged, good = tmp_path / "damaged.gz", tmp_path / "good"
    damaged.write_bytes(gzip.compress(views(20_000))[:-50])
    good.write_bytes(views(7))
    result = run_command("send", damaged, good, env=settings_for(emulator))

    assert result.exit_code == 1
    assert "the gzip data ends too early" in result.stderr
    assert {"s0", "s6"} <= recorded(emulator).keys()
    assert figure(result.stdout, "delivered") == emulator.stats()["total_events"]


def test_rejects_can_be_corrected_and_sent(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If a rejects file is corrected and sent, exactly the events that were missing are delivered."""
    made = rows(1_000)
    spoilt = [line if number % 100 else f"{line}," for number, line in enumerate(made)]
    path, rejects, again = tmp_path / "events.csv", tmp_path / "rejects", tmp_path / "again"
    path.write_bytes(clickstream(spoilt))
    emulator.add_faults([{"kind": "status", "status": 400}])
    first = run_command("send", path, "--rejects", rejects, env=settings_for(emulator))
    undelivered = 1_000 - 10 - emulator.stats()["total_events"]

    assert first.exit_code == 1
    assert f"{undelivered + 10:,} lines are in {rejects}" in first.stderr
    assert undelivered + 10 + 1 == count_of(rejects)

    text = rejects.read_text("utf-8")
    rejects.write_text(re.sub(r",,\n", ",\n", text), encoding="utf-8")
    second = run_command("send", rejects, "--rejects", again, env=settings_for(emulator))

    assert second.exit_code == 0, second.stderr
    assert {name: sorted(acts) for name, acts in meant(made).items()} == {
        name: sorted(acts) for name, acts in recorded(emulator).items()
    }
    assert not again.exists()


def test_rejects_keep_bad_lines_as_they_are(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If lines are bad, the rejects file contains these lines byte for byte, and no good lines."""
    rejects = tmp_path / "rejects"
    run_command(
        "send",
        "-",
        "--rejects",
        rejects,
        env=settings_for(emulator),
        stdin=b'{"x": \xff}\r\n' + views(1) + b"\x00 last",
    )

    assert b'{"x": \xff}\r\n\x00 last\n' == rejects.read_bytes()


@posix
def test_rejects_are_their_owners_alone(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """The rejects file can be read only by its owner, because events contain personal data."""
    rejects = tmp_path / "rejects"
    run_command("send", "-", "--rejects", rejects, env=settings_for(emulator), stdin=b"oops\n")

    assert stat.S_IMODE(rejects.stat().st_mode) == 0o600


def test_rejects_of_an_earlier_run_are_not_overwritten(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If the rejects file is not empty, for example the input itself, it is not overwritten, and nothing is sent."""
    path = tmp_path / "rejects"
    path.write_bytes(views(1))
    result = run_command("send", path, "--rejects", path, env=settings_for(emulator))

    assert (2, 0, views(1)) == (result.exit_code, emulator.stats()["requests"], path.read_bytes())
    assert "is not empty" in result.stderr


def test_rejects_that_cannot_be_written(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If the rejects file cannot be written, the command ends before anything is sent."""
    result = run_command(
        "send", "-", "--rejects", tmp_path / "no" / "where", env=settings_for(emulator), stdin=views(1)
    )

    assert (2, 0) == (result.exit_code, emulator.stats()["requests"])
    assert "cannot write" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_rejects_on_a_full_disk(emulator: EmulatorProcess) -> None:
    """If the disk is full, events are still delivered, and the rejects are reported as incomplete."""
    result = run_command("send", "-", "--rejects", "/dev/full", env=settings_for(emulator), stdin=b"oops\n" + views(2))

    assert (1, 2) == (result.exit_code, emulator.stats()["total_events"])
    assert "/dev/full is NOT complete: No space left on device" in result.stderr


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "the request is malformed (HTTP 400)"),
        (401, "authentication failed: check RETAILROCKET_API_KEY, and that it belongs to this --partner-id (HTTP 401)"),
        (403, "access denied: ask the account manager to open the tracking API for this shop (HTTP 403)"),
        (404, "no such resource: check --base-url (HTTP 404)"),
        (405, "the address takes no POST requests: check --base-url (HTTP 405)"),
        (407, "the proxy on the way asks for credentials: write them into its URL, as http://user:password@host:port"),
        (413, "the request is too large (HTTP 413)"),
        (307, "the address redirects, and the key is never sent on: check --base-url (HTTP 307)"),
        (429, "the shop's request limit is used up: lower --rate, or wait for its other processes (HTTP 429)"),
        (503, "the API failed: try again later (HTTP 503)"),
    ],
)
def test_reason_says_what_to_correct(emulator: EmulatorProcess, status: int, message: str) -> None:
    """If events are not delivered, the report says why and what to correct."""
    emulator.add_faults([{"kind": "status", "status": status, "times": None}])
    result = run_command("send", "-", "--give-up-after", "0", env=settings_for(emulator), stdin=views(3))

    assert result.exit_code == 1
    assert f"3 events not delivered: {message}" in result.stderr
    assert ("may have been recorded all the same" in result.stderr) is (status == 503)


def test_wrong_key_stops_early(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If the key is wrong, a long file is not read to its end, and the report says where reading stopped."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(views(100_000))
    result = run_command("send", path, env={**settings_for(emulator), "RETAILROCKET_API_KEY": "wrong"})
    found = re.search(rf"stopped at {re.escape(str(path))}:(\d+), since nothing was delivered", result.stderr)

    assert found is not None, result.stderr
    assert int(found[1]) == figure(result.stdout, "rejected by the API") < 100_000
    assert (1, 0) == (result.exit_code, emulator.stats()["total_events"])


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["/no/such/file"], {}, "error: cannot read /no/such/file: No such file or directory\n"),
        (["."], {}, "error: . is a directory\n"),
        (["-", "-"], {}, "error: the standard input can be read only once: give - once\n"),
        (["-"], {"RETAILROCKET_PARTNER_ID": ""}, "error: give the shop's public id: --partner-id ID"),
        (["-"], {"RETAILROCKET_API_KEY": ""}, "error: set the environment variable RETAILROCKET_API_KEY"),
        (["-", "--base-url", "http://example.com/1.0/"], {}, "error: --base-url must begin with https://"),
        (["-", "--price", "-1"], {}, "error: order.price must be"),
        (["-", "--rate", "0"], {}, ""),
        (["-", "--drain", "nan"], {}, ""),
        (["-", "--drain", "inf"], {}, "error: --drain must be a number of seconds\n"),
        (["-", "--give-up-after", "inf"], {}, "error: RetryPolicy.max_elapsed must be a number of seconds"),
    ],
)
def test_wrong_use(emulator: EmulatorProcess, arguments: list[str], env: dict[str, str], message: str) -> None:
    """If arguments or settings are wrong, one sentence is printed, the exit status is 2, and nothing is sent."""
    result = run_command("send", *arguments, env={**settings_for(emulator), **env}, stdin=views(1))

    assert result.stderr.startswith(message)
    assert (2, 0) == (result.exit_code, emulator.stats()["requests"])


def test_insecure_address_is_allowed_by_option(emulator: EmulatorProcess) -> None:
    """If `--allow-insecure-http` is given, `send` accepts a plain http address on another host."""
    options = ("--base-url", "http://nowhere.invalid/1.0/", "--allow-insecure-http", "--give-up-after", "0")
    result = run_command("send", "-", *options, env=settings_for(emulator), stdin=views(1))

    assert result.exit_code == 1
    assert "1 events not delivered: no answer: check --base-url and the network" in result.stderr


def test_dry_run_sends_nothing_and_needs_nothing() -> None:
    """If a dry run finds only good lines, it needs no credentials, and its exit status is 0."""
    result = run_command("send", "--dry-run", "-", stdin=views(3))

    assert (0, "", "3 events are valid; 0 lines are bad; nothing was sent\n") == (
        result.exit_code,
        result.stdout,
        result.stderr,
    )


def test_dry_run_lists_every_bad_line(tmp_path: Path) -> None:
    """If a dry run finds bad lines, it prints all of them, with file, number and reason."""
    path, rejects = tmp_path / "events", tmp_path / "rejects"
    path.write_bytes(views(1) + b'{"view":{}}\n' * 50)
    result = run_command("send", "--dry-run", path, "--rejects", rejects)

    message = [f"{path}:{number}: view.session_external_id is required" for number in range(2, 52)]
    assert message == result.stdout.splitlines()
    assert (1, 50) == (result.exit_code, count_of(rejects))


def test_control_characters_of_the_input_are_not_printed(tmp_path: Path) -> None:
    """If a file's name or content has control characters, they are not printed."""
    path = tmp_path / "bad\x1b[31mname"
    path.write_bytes(b'{"view\\u001b[31m":{}}\n{"view":{"\\u001b[31m":1}}\n' + HEADER.encode() + b"\n1,1,\x1b[31m,1,\n")
    result = run_command("send", "--dry-run", path)

    assert 3 == len(result.stdout.splitlines())
    assert "\x1b" not in result.stdout + result.stderr


def test_output_that_the_terminal_cannot_show() -> None:
    """If the terminal has no Unicode, escapes are printed, and no traceback."""
    data = f"{HEADER}\n1,1,диван,1,\n".encode()
    result = run_command("send", "--dry-run", "-", encoding="latin-1", stdin=data)

    assert (1, False) == (result.exit_code, "Traceback" in result.stderr)
    assert "(got '\\u0434\\u0438\\u0432\\u0430\\u043d')" in result.stdout


def test_pipe_that_closes_early(tmp_path: Path) -> None:
    """If the output's reader ends early, as `head` does, there is no traceback."""
    path = tmp_path / "events"
    path.write_bytes(b"oops\n" * 50_000)
    with started("send", "--dry-run", path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("command", ["send", "check"])
def test_no_traceback_and_no_control_characters_in_a_pipe(emulator: EmulatorProcess, command: str) -> None:
    """If the output is a pipe, it contains only text: no progress bar and no colours."""
    arguments = [command, *(["-"] if command == "send" else [])]
    output = run_command(*arguments, env=settings_for(emulator), stdin=views(500) + b"oops\n").output

    assert {letter for letter in output if not letter.isprintable()} == {"\n"}


@posix
@pytest.mark.endurance
def test_memory_does_not_grow_with_the_input(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If a file is much larger than the buffer, the command needs no more memory than for a small file."""
    code = (
        "import resource, sys, atexit; from retailrocket_async.cli import main;"
        "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)); main()"
    )

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(views(count))
        arguments = ("send", path, "--rate", "5000")
        return int(finished(*arguments, env=settings_for(emulator), code=code)[2].split()[-1])

    emulator.configure(limit=None)
    small, large = peak(30_000), peak(90_000)
    emulator.configure(limit=50)

    assert large < small * 1.25


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_delivers_what_was_read(emulator: EmulatorProcess, number: signal.Signals, status: int) -> None:
    """If a signal interrupts the command, everything read so far is delivered and reported."""
    with started("send", "-", env=settings_for(emulator)) as process:
        feed(process, views(3))
        until(lambda: emulator.stats()["total_events"] == 3)
        process.send_signal(number)
        # The pipe is still open, so only the signal can have ended the command.
        assert process.wait() == status
        message, complaints = (output.decode() for output in process.communicate())

    assert figure(message, "delivered") == 3
    assert "interrupted: delivering what was read, for at most 15 s; interrupt again to stop now" in complaints
    assert "read up to <stdin>:3; the rest was not read" in complaints


@posix
def test_watch_follows_a_growing_file(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If `--watch` is given, `send` follows the file: it sends new lines, also after truncation or replacement."""
    path, all_of_it = tmp_path / "events", views(9).splitlines(keepends=True)
    path.write_bytes(b"".join(all_of_it[:2]) + all_of_it[2][:20])
    with started("send", path, "--watch", "--json", env=settings_for(emulator)) as process:
        until(lambda: emulator.stats()["total_events"] == 2)
        with path.open("ab") as file:
            file.write(all_of_it[2][20:] + all_of_it[3].rstrip())
        until(lambda: emulator.stats()["total_events"] == 3)
        path.rename(tmp_path / "events.1")
        with (tmp_path / "events.1").open("ab") as file:
            # This simulates a program that still has the renamed file open, and has not ended its last line yet.
            file.write(b"\n" + all_of_it[4].rstrip())
        path.write_bytes(b"".join(all_of_it[5:8]))
        until(lambda: emulator.stats()["total_events"] == 8)
        path.write_bytes(all_of_it[8])
        until(lambda: emulator.stats()["total_events"] == 9)
        process.send_signal(signal.SIGTERM)
        out, complaints = (output.decode() for output in process.communicate())

    assert process.returncode == 0, complaints
    message = json.loads(out)
    assert (9, 0, signal.SIGTERM) == (message["delivered"], message["bad_lines"], message["interrupted_by"])
    assert sorted(f"s{number}" for number in range(9)) == sorted(recorded(emulator))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--watch", "-"), "--watch takes one file, which is not the standard input"),
        (("--from-line", "2", "-"), "--from-line takes one file, which is not the standard input"),
        (("--watch", "--dry-run", __file__), "--dry-run and --watch exclude each other"),
    ],
)
def test_what_does_not_go_together(arguments: tuple[str, ...], message: str) -> None:
    """If options exclude each other, one sentence is printed, and nothing is sent."""
    result = run_command("send", *arguments)

    assert (2, True) == (result.exit_code, message in result.stderr)


def test_gzip_is_not_followed(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If `--watch` is given with a compressed file, the command says that such a file cannot be followed."""
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(views(3)))
    result = run_command("send", path, "--watch", env=settings_for(emulator))

    assert 1 == result.exit_code
    assert "it is gzipped, and what is compressed cannot be followed" in result.stderr


def test_from_line_goes_on_where_a_run_ended(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If `--from-line` is given, earlier lines are parsed, because they may be headers, but they are not sent."""
    path = tmp_path / "events.csv"
    lines = rows(10)
    path.write_bytes(clickstream(lines))
    result = run_command("send", path, "--from-line", 8, "--json", env=settings_for(emulator))

    assert 0 == result.exit_code
    assert 4 == json.loads(result.stdout)["delivered"]
    assert meant(lines[6:]) == recorded(emulator)


def test_json_of_a_dry_run(tmp_path: Path) -> None:
    """If `--json` is given, the last line of a dry run is an object with the counts."""
    path = tmp_path / "events"
    path.write_bytes(views(3) + b"nonsense\n")
    result = run_command("send", path, "--dry-run", "--json")

    assert 1 == result.exit_code
    assert {"events": 3, "bad_lines": 1} == json.loads(result.stdout.splitlines()[-1])


@posix
def test_second_interruption_stops_at_once(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If Ctrl-C is pressed twice, the command ends at once; unanswered events are in the rejects file."""
    rejects = tmp_path / "rejects"
    emulator.add_faults([{"kind": "stall", "times": None}])
    with started("send", "-", "--rejects", rejects, "--drain", "1000", env=settings_for(emulator)) as process:
        feed(process, views(3))
        until(lambda: emulator.stats()["requests"] == 1)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        complaints = process.communicate()[1].decode()

    assert process.returncode == 130
    assert sorted(views(3).splitlines()) == sorted(rejects.read_bytes().splitlines())
    assert "3 events not delivered: no answer before the command ended" in complaints
    assert "3 of them may have been recorded all the same" in complaints


@posix
async def test_interruption_while_the_buffer_is_full(tmp_path: Path) -> None:
    """If the command is interrupted, the rejects file has exactly the events up to the line that is reported."""
    path = tmp_path / "events"
    path.write_bytes(views(20_000))
    clients: list[AsyncTrackingClient] = []

    def client_of(**options: Any) -> AsyncTrackingClient:
        # So few batches are in flight that the events of the file fill the buffer.
        options |= {"buffer": Buffer(max_events=1_000), "batching": Batching(max_in_flight=2)}
        clients.append(AsyncTrackingClient("dev-api-key", "dev-partner", base_url=there.url, **options))
        return clients[0]

    with Rejects(tmp_path / "rejects") as rejects, Meter("sending", None) as meter:
        async with running_emulator() as there:
            there.fail_with("stall", times=None)
            sources = [Source(path)]
            delivery = Delivery(sources, lines_of=lines_of, rejects=rejects, meter=meter, drain=0)
            running = asyncio.create_task(delivery.run(client_of))
            async with asyncio.timeout(20):
                while not clients or not clients[0].stats().waiting:  # noqa: ASYNC110 - no event says that the buffer is full
                    await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGINT)
            result = await running
    kept = sorted(json.loads(line)["view"]["productId"] for line in (tmp_path / "rejects").read_bytes().splitlines())

    assert (signal.SIGINT, f"{path}:{len(kept)}") == (result.interrupted_by, result.stopped_at)
    assert 1_000 < len(kept) == result.events < 20_000
    assert [*range(len(kept))] == kept


@posix
def test_progress_on_a_terminal(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If the output is a terminal, a progress bar shows rate and remaining time."""
    path = tmp_path / "events"
    path.write_bytes(views(2_000))
    status, seen = on_a_terminal(["send", str(path)], {}, settings_for(emulator))

    assert status == 0, seen
    assert b"sending" in seen
    assert re.search(rb"events, [\d,]+/s", seen)
    assert re.search(rb"\d+%", seen)


@posix
def test_bad_lines_stand_above_the_bar(tmp_path: Path) -> None:
    """If a dry run prints bad lines on a terminal, each is complete and on its own line."""
    path = tmp_path / "events"
    path.write_bytes(b"oops\n" * 3)
    status, seen = on_a_terminal(["send", "--dry-run", str(path)], {}, {})

    assert status == 1, seen
    assert 3 == len(re.findall(rb"\n?[^\n]*events:\d: is neither an envelope[^\n]*\n", seen))


@posix
def test_nobody_answers_the_prompt(emulator: EmulatorProcess) -> None:
    """If no key is typed at the prompt, the command says so and exits with status 2."""
    env = {**settings_for(emulator), "RETAILROCKET_API_KEY": ""}
    status, seen = on_a_terminal(["check"], {b"does not show": b"\x04"}, env)

    assert status == 2, seen
    assert b"error: no key was given" in seen


@posix
def test_key_is_asked_for_on_a_terminal(emulator: EmulatorProcess) -> None:
    """If RETAILROCKET_API_KEY is not set, the command asks for the key on the terminal, and does not show it."""
    env = {**settings_for(emulator), "RETAILROCKET_API_KEY": ""}
    status, seen = on_a_terminal(["check"], {b"does not show": b"dev-api-key\n"}, env)

    assert status == 0, seen
    assert b"dev-api-key" not in seen


@posix
def test_pipe_that_does_not_block(emulator: EmulatorProcess) -> None:
    """If standard input is a pipe in non-blocking mode, the pipe is read to its end."""
    code = f"import os; os.set_blocking(0, False); {MAIN}"
    with started("send", "-", env=settings_for(emulator), code=code) as process:
        feed(process, views(1))
        until(lambda: emulator.stats()["total_events"] == 1)
        process.communicate(views(2))

    assert (0, 3) == (process.returncode, emulator.stats()["total_events"])


CLOSED = "error: the standard input is closed: there is nothing to read\n"


@pytest.mark.parametrize("arguments", [["send", "-"], ["send", "--dry-run", "-"]])
def test_closed_standard_input(arguments: list[str]) -> None:
    """If standard input is closed but needed, the command says so."""
    result = run_command(*arguments, stdin=None)

    assert (2, "", CLOSED) == (result.exit_code, result.stdout, result.stderr)


@posix
def test_process_without_standard_input() -> None:
    """If the process is started with a closed standard input, the command says so."""
    assert (2, "", CLOSED) == finished("send", "-", code=WITHOUT_INPUT)


def test_no_key_and_closed_standard_input(tmp_path: Path) -> None:
    """If there is no standard input, the command does not ask for the key."""
    (tmp_path / "events").touch()
    result = run_command("send", tmp_path / "events", "--partner-id", "shop", stdin=None)

    assert (2, "error: set the environment variable RETAILROCKET_API_KEY") == (result.exit_code, result.stderr[:56])


# --- outputs that cannot be written -----------------------------------------------------------------------------------


def delivered_all(status: int, printed: str, extra: bytes) -> tuple[int, bool]:
    """Return the exit status, and whether "Everything was delivered" was printed exactly if `extra` is empty."""
    return status, ("Everything was delivered: 3 events in 1 requests.\n" in printed) is not bool(extra)


@posix
@pytest.mark.parametrize(("unwritable", "complaint"), UNWRITABLE)
@pytest.mark.parametrize(("extra", "status"), [(b"", 0), (b"oops\n", 1)])
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_cannot_be_written(
    *, emulator: EmulatorProcess, unwritable: str, complaint: str, extra: bytes, status: int, buffered: bool
) -> None:
    """If standard output cannot be written, the exit status still says whether all events were delivered."""
    output = unwritable_output(unwritable, buffered=buffered)
    result = run_command("send", "-", env=settings_for(emulator), stdin=views(3) + extra, stdout=output)

    assert (status, True) == delivered_all(result.exit_code, result.stderr, extra)
    assert 3 == emulator.stats()["total_events"]
    assert complaint in result.stderr
    assert [] == [word for word in ("Traceback", "Errno") if word in result.stderr]


@posix
@pytest.mark.parametrize(("output", "complaint"), [(GONE, ""), (FULL, NO_SPACE)])
def test_process_whose_output_cannot_be_written(emulator: EmulatorProcess, output: str, complaint: str) -> None:
    """If the interpreter cannot write its buffers when it ends, status and message still say that all was delivered."""
    ended, _, printed = finished("send", "-", env=settings_for(emulator), code=f"{output}; {MAIN}", stdin=views(3))

    assert (0, True) == delivered_all(ended, printed, b"")
    assert 3 == emulator.stats()["total_events"]
    assert complaint in printed
    assert [] == [word for word in ("Traceback", "Errno") if word in printed]


@posix
@pytest.mark.parametrize("unwritable", ["gone", "full"])
def test_no_output_can_be_written(emulator: EmulatorProcess, unwritable: str) -> None:
    """If no output can be written, the exit status still says that everything was delivered."""
    outputs = {name: unwritable_output(unwritable) for name in ("stdout", "stderr")}
    result = run_command("send", "-", env=settings_for(emulator), stdin=views(3), **outputs)

    assert (0, 3) == (result.exit_code, emulator.stats()["total_events"])


@posix
@pytest.mark.parametrize(("unwritable", "complaint"), UNWRITABLE)
def test_dry_run_whose_output_cannot_be_written(unwritable: str, complaint: str) -> None:
    """If a dry run cannot print the bad lines, its exit status still says that there are some."""
    output = unwritable_output(unwritable)
    result = run_command("send", "--dry-run", "-", stdin=b"oops\n" * 3, stdout=output)

    assert (1, complaint) == (result.exit_code, result.stderr)
