"""The Grafana dashboard and the alerts use only metrics and labels that a running example has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from retailrocket_async.emulator import emulator_process

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(sys.platform == "win32", reason="the example ends with SIGTERM"),
]

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "retailrocket.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"


def expressions() -> list[str]:
    """Return the Prometheus queries of the dashboard and the alerts."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [
        rule["expr"] for group in groups for rule in group["rules"]
    ]


def until_scraped(url: str, wanted: str) -> str:
    """Request the metrics until they contain the text; if they never do, the test's time limit ends the loop."""
    while wanted not in (scraped := httpx.get(url).text):
        time.sleep(0.02)
    return scraped


def test_every_metric_is_there(tmp_path: Path) -> None:
    """If a query uses a metric or label, the running example has it; the key is in no metric."""
    with emulator_process() as emulator:
        env = {
            "RETAILROCKET_API_KEY": "dev-api-key",
            "RETAILROCKET_PARTNER_ID": "dev-partner",
            "RETAILROCKET_BASE_URL": emulator.url,
        }
        command = [sys.executable, str(ROOT / "examples" / "metrics.py"), "--port", "0"]
        with subprocess.Popen(command, env={**os.environ, **env}, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            until_scraped(url, 'retailrocket_outcome="delivered"')
            emulator.add_faults([{"kind": "status", "status": 400, "times": None}])
            scraped = until_scraped(url, 'retailrocket_outcome="rejected"')
            process.terminate()
            assert process.wait() == 0
    metrics = set(re.findall(r"^(\w+)(?=[{ ])", scraped, re.MULTILINE))
    labels = set(re.findall(r"[{,](\w+)=", scraped)) | {"le", "instance", "retailrocket_outcome_reason"}

    asked = expressions()
    assert len(asked) > 20
    assert {name for text in asked for name in re.findall(r"retailrocket_client_\w+", text)} <= metrics
    named = {name for text in asked for name in re.findall(r"(?:[{,] ?)(\w+)(?==~?\"|!=)", text)}
    grouped = {
        name.strip() for text in asked for names in re.findall(r"by \(([^)]*)\)", text) for name in names.split(",")
    }
    assert named | grouped <= labels
    assert "dev-api-key" not in scraped


def test_alerts_tell_what_to_do() -> None:
    """If an alert is defined, it has a severity, a summary, a description and a unique name."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]

    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} == rule["annotations"].keys()


def test_panels_do_not_overlap() -> None:
    """If panels are on the dashboard, they do not overlap and are within its 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
