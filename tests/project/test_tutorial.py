"""The tutorial works as written: its shop, its commands and its visits, with other ports."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from retailrocket_async.emulator import EmulatorProcess, emulator_process
from tests.project.test_docs import ROOT, blocks

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = pytest.mark.endurance

TUTORIAL = ROOT / "docs" / "tutorial.md"
SHOP = "http://127.0.0.1:8000"


def commands() -> list[list[str]]:
    """Return the words of every command of the tutorial, in order."""
    return [shlex.split(line) for block in blocks(TUTORIAL, "console") for line in block[2].splitlines()]


def settings(emulator: EmulatorProcess) -> dict[str, str]:
    """Return the environment variables that the tutorial exports, with the address of this emulator."""
    exported = dict(words[1].split("=", 1) for words in commands() if words[0] == "export")
    assert exported.pop("RETAILROCKET_BASE_URL") == "http://127.0.0.1:8080/1.0/"
    return {**exported, "RETAILROCKET_BASE_URL": emulator.url}


@contextmanager
def shop(folder: Path, env: dict[str, str]) -> Generator[str]:
    """Run the tutorial's shop with the tutorial's command while the block runs; yield the shop's address."""
    [source] = blocks(TUTORIAL, "python")
    (folder / "shop.py").write_text(source[2], "utf-8")
    [served] = [words for words in commands() if words[0].endswith("uvicorn")]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        command = [sys.executable, "-m", "uvicorn", *served[1:-2], "--fd", str(listening.fileno())]
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **env}, pass_fds=[listening.fileno()], stderr=subprocess.PIPE
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            process.terminate()
            process.communicate(timeout=30)


def visit(browser: httpx.Client, address: str) -> list[int]:
    """Make the requests of the tutorial's visitor, and return the answers' statuses."""
    statuses: list[int] = []
    for words in commands():
        if words[0] == "curl":
            method = words[words.index("-X") + 1] if "-X" in words else "GET"
            statuses.append(browser.request(method, words[-1].replace(SHOP, address)).status_code)
    return statuses


@pytest.mark.skipif(sys.platform == "win32", reason="hands a socket to a process")
def test_the_tutorial_works(tmp_path: Path) -> None:
    """If the tutorial's visit is made twice, once while the API fails, each step is recorded once, for one visitor."""
    with emulator_process() as emulator:
        with shop(tmp_path, settings(emulator)) as address, httpx.Client() as browser:
            assert visit(browser, address) == [200, 200, 200]
            emulator.add_faults([{"kind": "status", "status": 503}])
            assert visit(browser, address) == [200, 200, 200]
            assert browser.post(f"{address}/orders/{'9' * 51}?product_id=2").status_code == 500
        # The shop has ended, so it has sent every event.
        events = emulator.events()
    names = re.findall(r"`(view|addToBasket|order)`", TUTORIAL.read_text("utf-8"))[:3]
    # The events of the request that failed are recorded later than others, so the order is not compared.
    assert Counter(event["name"] for event in events) == Counter(names * 2)
    assert len({event["fields"]["sessionExternalId"] for event in events}) == 1
