"""The Celery task that the documentation shows runs in a real worker, which forks a pool of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import Settings, emulator_process
from tests.project.test_docs import ROOT, examples

if TYPE_CHECKING:
    from pathlib import Path

TASKS = 20

pytestmark = pytest.mark.endurance

# Celery's file transport passes messages in files, so no broker's server is needed.
BROKER = """
from pathlib import Path
from tasks import app, viewed

here = Path(__file__).parent
for name in ("messages", "control"):
    here.joinpath(name).mkdir(exist_ok=True)
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": here / "messages", "data_folder_out": here / "messages", "control_folder": here / "control"
    },
)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_task_tracks_from_every_process(tmp_path: Path) -> None:
    """If tasks track in the pool's processes, all events are recorded, even events tracked just before SIGTERM."""
    [source] = [
        example.source
        for example in examples(ROOT / "docs" / "how-to" / "threads-and-processes.md")
        if "class Tracking" in example.source
    ]
    tmp_path.joinpath("tasks.py").write_text(source, "utf-8")
    tmp_path.joinpath("broker.py").write_text(BROKER, "utf-8")
    with emulator_process() as emulator:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "RETAILROCKET_API_KEY": Settings().api_key,
            "RETAILROCKET_PARTNER_ID": Settings().partner_id,
            "RETAILROCKET_BASE_URL": emulator.url,
        }
        calls = f"import broker; [broker.viewed.delay(number) for number in range(1, {TASKS} + 1)]"
        subprocess.run([sys.executable, "-c", calls], cwd=tmp_path, env=environment, check=True, timeout=100)
        options = ["--pool=prefork", "--concurrency=2", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
        with subprocess.Popen(
            [sys.executable, "-m", "celery", "--app=broker", "worker", *options],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        ) as worker:
            # A worker that hangs is killed, so that only this test fails.
            killer = threading.Timer(100, os.killpg, (worker.pid, signal.SIGKILL))
            killer.start()
            try:
                assert worker.stdout is not None
                lines: list[str] = []
                done = 0
                for line in worker.stdout:
                    lines.append(line)
                    done += line.count(" succeeded in ")
                    if done >= TASKS:
                        break
                worker.send_signal(signal.SIGTERM)
                lines += worker.stdout
                worker.wait()
            finally:
                killer.cancel()
                worker.kill()
        products = sorted(record["fields"]["productId"] for record in emulator.events())

    assert (TASKS, 0) == (done, worker.returncode), "".join(lines)
    assert list(range(1, TASKS + 1)) == products
