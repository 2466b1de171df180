"""The files around the package (workflows, issue forms and others) agree with noxfile.py and the metadata."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
YAML = [
    ROOT / ".pre-commit-config.yaml",
    ROOT / ".readthedocs.yaml",
    ROOT / "CITATION.cff",
    *sorted(GITHUB.rglob("*.yml")),
]
AUTOMATION = [*WORKFLOWS, ROOT / ".readthedocs.yaml", ROOT / ".pre-commit-config.yaml"]
TEXTS = [
    *(path for path in sorted(ROOT.glob("*.*")) if path.suffix in (".md", ".cff", ".py", ".json", ".yaml")),
    *sorted(path for path in GITHUB.rglob("*") if path.is_file()),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def name_of(path: Path) -> str:
    """Return a path relative to the root of the repository."""
    return str(path.relative_to(ROOT))


def read(path: Path) -> Any:
    """Parse a YAML file, and return its content."""
    return yaml.safe_load(path.read_text("utf-8"))


def jobs() -> list[tuple[str, dict[str, Any]]]:
    """Return every job of every workflow, with its name."""
    return [(f"{path.name}:{name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def sessions() -> set[str]:
    """Return the names of the sessions in noxfile.py."""
    module = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if any("nox.session" in ast.unparse(d) for d in node.decorator_list)}


@pytest.mark.parametrize("path", YAML, ids=name_of)
def test_yaml_is_valid(path: Path) -> None:
    """Each YAML file of the repository can be parsed, and its content is a mapping."""
    assert isinstance(read(path), dict)


@pytest.mark.parametrize(
    "path", [*WORKFLOWS, ROOT / ".readthedocs.yaml", ROOT / ".pre-commit-config.yaml"], ids=name_of
)
def test_automation_calls_sessions_that_exist(path: Path) -> None:
    """Every nox session that a workflow or hook runs exists in noxfile.py."""
    text = path.read_text("utf-8").replace("-${{ matrix.python }}", "")
    called = {name for names in re.findall(r"--session ((?:\"?\w+\"? ?)+)", text) for name in re.findall(r"\w+", names)}

    assert called
    assert called <= sessions()


def test_modules_that_a_session_leaves_out_exist() -> None:
    """Every test module that noxfile.py leaves out of a session exists."""
    module = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    assigned = [node for node in module.body if isinstance(node, ast.Assign)]
    [names] = [node for node in assigned if ast.unparse(node.targets[0]) == "ELSEWHERE"]
    left_out = [node.value for node in ast.walk(names) if isinstance(node, ast.Constant)]

    assert left_out
    assert [name for name in left_out if not (ROOT / "tests" / f"{name}.py").is_file()] == []


def test_the_gate_runs_in_a_workflow() -> None:
    """The workflow that runs for each change runs `.ci/run`, the same script that developers run."""
    commands = [step.get("run") for _, job in jobs() for step in job["steps"]]

    assert ".ci/run" in commands


def test_every_supported_python_is_in_the_matrix() -> None:
    """The tests run on every Python version that the metadata names, and on Linux, macOS and Windows."""
    classified = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    matrix = dict(jobs())["ci.yml:pythons"]["strategy"]["matrix"]

    assert classified == set(matrix["python"])
    assert {"ubuntu", "macos", "windows"} == {system.split("-")[0] for system in matrix["os"]}


@pytest.mark.parametrize(("name", "job"), jobs(), ids=[name for name, _ in jobs()])
def test_jobs_are_bounded_and_pinned(name: str, job: dict[str, Any]) -> None:
    """Each job has a time limit, a named version of its system, and actions pinned by commit hash."""
    used = [step["uses"] for step in job["steps"] if "uses" in step]

    assert job["timeout-minutes"] <= 60
    assert "latest" not in job["runs-on"]
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []


def test_workflows_may_only_read() -> None:
    """Workflows may only read the repository; the job that publishes may also request an identity token."""
    assert [{"contents": "read"}] * len(WORKFLOWS) == [read(path)["permissions"] for path in WORKFLOWS]
    assert {"release.yml:publish": {"id-token": "write"}} == {
        name: job["permissions"] for name, job in jobs() if "permissions" in job
    }


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_forms_are_well_formed(path: Path) -> None:
    """Each field of an issue form has a label and a unique id."""
    form = read(path)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]

    assert {"name", "description", "labels", "body"} == form.keys()
    assert {field["type"] for field in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len(ids) == len(set(ids))
    assert [field["id"] for field in fields if not field["attributes"].get("label")] == []


def test_a_bug_report_asks_for_no_secret() -> None:
    """A bug report has a required confirmation that it includes no key, and no field asks for a secret."""
    fields = {field.get("id"): field for field in read(GITHUB / "ISSUE_TEMPLATE" / "bug_report.yml")["body"]}
    [confirmation] = fields.pop("secrets")["attributes"]["options"]
    warning = fields.pop(None)["attributes"]["value"]
    asked = " ".join(str(field["attributes"]) for field in fields.values()).lower()

    assert confirmation["required"]
    assert "API key" in confirmation["label"]
    assert "Leave out the API key" in warning
    assert [word for word in ("api key", "api_key", "partner", "password", "e-mail") if word in asked] == []


def test_every_kind_of_dependency_is_updated_after_a_week() -> None:
    """For every kind of package, Dependabot waits until a version is a week old before it proposes an update."""
    updates = read(GITHUB / "dependabot.yml")["updates"]

    assert {"pip", "npm", "github-actions"} == {update["package-ecosystem"] for update in updates}
    assert [7] * len(updates) == [update["cooldown"]["default-days"] for update in updates]


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff names the version, the licence and the authors of the metadata."""
    citation = read(ROOT / "CITATION.cff")

    assert (PROJECT["version"], PROJECT["license"], PROJECT["authors"]) == (
        citation["version"],
        citation["license"],
        citation["authors"],
    )


@pytest.mark.parametrize("path", [ROOT / "CODE_OF_CONDUCT.md", ROOT / "SECURITY.md"], ids=name_of)
def test_links(path: Path) -> None:
    """If a page about the project links to a file, or to a heading in a file, both exist."""
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text("utf-8")):
        headings = re.findall(r"^#+ (.+)$", (path.parent / target).read_text("utf-8"), re.MULTILINE)
        assert not heading or heading in [re.sub(r"[^\w-]", "", line.lower().replace(" ", "-")) for line in headings]


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    """Only pyproject.toml contains the repository's address, so moving the repository means editing one file."""
    address = PROJECT["urls"]["Source"].removeprefix("https://")

    assert [name_of(path) for path in TEXTS if address in path.read_text("utf-8")] == []
    assert [url for url in PROJECT["urls"].values() if not url.startswith(PROJECT["urls"]["Source"])] == []
