"""The applications of docs/how-to/frameworks.md can be started, serve a page, and deliver its event."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import EmulatorProcess, emulator_process
from tests.project.test_docs import ROOT, examples
from tests.support.example_process import environment_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.endurance

# Each application runs in its own process, because Django can be configured only once per process.
VISIT = """
import sys
import shop
from starlette.testclient import TestClient

with TestClient(shop.app) as browser:
    for path in sys.argv[1:]:
        print(browser.get(path).text)
    print(browser.cookies["retailrocket_session"])
"""
VISIT_AIOHTTP = """
import asyncio, http.cookiejar
import aiohttp
from aiohttp.test_utils import TestClient, TestServer
import shop

async def main():
    async with TestClient(TestServer(shop.app), cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        answer = await browser.get("/")
        print(await answer.text())
        print(answer.cookies["retailrocket_session"].value)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    """Provide an emulator in its own process."""
    with emulator_process() as emulator:
        yield emulator


@pytest.mark.parametrize(
    ("needle", "visit", "paths"),
    [
        ("a product page", VISIT, ["/"]),
        ("starlette.middleware", VISIT, ["/"]),
        ("web.Application", VISIT_AIOHTTP, ["/"]),
        ("get_asgi_application", VISIT, ["/", "/category"]),
        ("from litestar", VISIT, ["/"]),
    ],
    ids=["fastapi", "starlette", "aiohttp", "django", "litestar"],
)
def test_the_documented_application_tracks_its_visitor(
    needle: str, visit: str, paths: list[str], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """If a documented application is visited and stopped, it has set the cookie and delivered its events."""
    source = next(each.source for each in examples(ROOT / "docs/how-to/frameworks.md") if needle in each.source)
    tmp_path.joinpath("shop.py").write_text(source, "utf-8")
    emulator.reset()
    environment = environment_of(emulator)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", visit, *paths],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    *pages, visitor = done.stdout.splitlines()
    names = {"/": ("a product page", "view"), "/category": ("a category page", "categoryView")}
    assert pages == [names[path][0] for path in paths]
    assert [(event["name"], event["fields"]["sessionExternalId"]) for event in emulator.events()] == [
        (names[path][1], visitor) for path in paths
    ]
