"""The checks of this repository. `nox` runs those that a change must pass; `nox --list` names all of them."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import nox
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

nox.needs_version = ">=2025.11.12"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
# The quick sessions come first. The session `tests` comes last, because its summary matters most.
nox.options.sessions = ["lint", "typing", "docs", "wheel", "tests"]

# A container image may forbid Python to store compiled modules. Every process of the tests would then compile all
# modules that it imports, which takes three fifths of the time of a command.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = "[aiohttp,cli,emulator,fastapi,http2,kafka,nats,otel,redis,relay,starlette]"


def ignored(names: Iterable[str]) -> list[str]:
    """Return the options with which pytest leaves out the test modules of these names."""
    return [f"--ignore=tests/{name}.py" for name in names]


def spread(processes: int) -> tuple[str, ...]:
    """Return the options of pytest-xdist for this number of processes.

    Many tests wait for a server, so five to seven processes are best, even on two cores. More processes would cost more
    time, because each of them collects all tests. Each process has a hash seed of its own. If the parameters of a test
    depend on the order of a set, the processes collect different tests, and pytest-xdist reports this.

    With worksteal, each process runs a consecutive part of the list, and takes tests from other processes at the end.
    So the tests of one module, which share servers, seldom run in more than one process.
    """
    return ("-n", str(processes), "--dist", "worksteal")


# Test modules that the `wheel` session leaves out, because they check the repository and not the package, or start
# dozens of processes. The modules for FastAPI and Starlette use Starlette's test client, whose leaks cause warnings at
# the lower bound of Starlette's version.
ELSEWHERE = (
    *("cli/test_emulate", "cli/test_send", "runtime/test_extras"),
    *("project/test_architecture", "project/test_deploy", "project/test_examples_recording"),
    *("project/test_examples_workers", "project/test_repository"),
    *("integrations/test_fastapi", "integrations/test_starlette"),
)
SHORT = ("-m", "not endurance and not needs_server", *ignored(ELSEWHERE))

# The repository's YAML files by the name of their schema, which is a part of check-jsonschema.
YAML = {
    "citation-file-format": ["CITATION.cff"],
    "dependabot": [".github/dependabot.yml"],
    "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "github-issue-forms": [".github/ISSUE_TEMPLATE/bug_report.yml", ".github/ISSUE_TEMPLATE/feature_request.yml"],
    "github-workflows": [str(path) for path in sorted(Path(".github/workflows").glob("*.yml"))],
    "readthedocs": [".readthedocs.yaml"],
}


def once(session: nox.Session, files: Iterable[str], install: Callable[[], object]) -> None:
    """Call *install*, unless it has already succeeded in this environment with the same contents of *files*."""
    note = Path(session.virtualenv.location) / "installed.sha256"
    digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    if not note.is_file() or note.read_text("utf-8") != digest:
        install()
        note.write_text(digest, "utf-8")


def tests_of(session: nox.Session, name: str) -> list[str]:
    """Return the paths of the tests of a module (`sender`, `relay.kafka`) or a folder (`spool`).

    An unknown name ends the session with an error that lists similar names.
    """
    *folders, last = [part.strip("_") for part in name.split(".")]
    root = Path("tests", *folders)
    modules = [path for stem in (f"test_{last}", f"test_{last}_*") for path in sorted(root.rglob(f"{stem}.py"))]
    found = [path for path in (root / last, *modules) if path.exists() and root / last not in path.parents]
    if not found:
        paths = [path.relative_to("tests") for path in sorted(Path("tests").rglob("test_*.py"))]
        known = {".".join((*path.parts[:-1], path.stem[5:])) for path in paths}
        known |= {path.stem[5:] for path in paths} | {path.parts[0] for path in paths}
        near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.5)
        session.error(f"no tests for {name!r}; near it: {', '.join(near) or 'nothing'}")
    return [str(path) for path in found]


def compile_tests(session: nox.Session, *chosen: str) -> None:
    """Compile the tests by collecting them in two processes, so that the later processes need not compile them again.

    Args:
        session: the nox session; if it has arguments, nothing is compiled.
        chosen: pytest's options that choose the tests.
    """
    if session.posargs:
        return
    folders = sorted(str(folder) for folder in Path("tests").iterdir() if any(folder.rglob("test_*.py")))
    collect = ("python", "-m", "pytest", "--collect-only", "-q", *chosen)
    with ThreadPoolExecutor() as both:
        halves = [both.submit(session.run, *collect, *folders[half::2], silent=True) for half in (0, 1)]
        for half in halves:
            half.result()


def untraced(path: Path) -> bool:
    """Return whether a test module must also run without coverage.

    Such a module may have tests marked `endurance` or `untraced`, or Hypothesis tests that the `wheel` session leaves
    out.
    """
    text = path.read_text("utf-8")
    left_out = "needs_server" in text or path.relative_to("tests").with_suffix("").as_posix() in ELSEWHERE
    return "endurance" in text or "mark.untraced" in text or (left_out and "hypothesis" in text)


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


def runs(python: Path, version: str) -> bool:
    """Return whether the program *python* is a CPython of this version, e.g. "3.12".

    The program has to be run to find out, because a shim of pyenv may exist and refuse to run.
    """
    ask = "import sys, platform; print(platform.python_implementation(), '%d.%d' % sys.version_info[:2])"
    try:
        ran = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0 and ran.stdout.split() == ["CPython", version]


def newest_other_python() -> str | None:
    """Return the newest Python that the package supports, except the version that runs nox.

    The path and the root of pyenv are searched. Return None if no other version is found.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in reversed(nox.project.python_versions(PROJECT)):
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            continue
        on_path = [Path(folder) / f"python{version}" for folder in os.get_exec_path()]
        under_pyenv = sorted(pyenv.glob(f"versions/{version}*/bin/python"), reverse=True)
        for python in (*on_path, *under_pyenv):
            if python.is_file() and runs(python, version):
                return str(python)
    return None


def lowest() -> list[str]:
    """Return every dependency of the package at its lower bound."""
    project = PROJECT["project"]
    requirements = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    pins: list[str] = []
    for requirement in map(Requirement, requirements):
        pins += [f"{requirement.name}=={bound.version}" for bound in requirement.specifier if bound.operator == ">="]
    return pins


@nox.session
def lint(session: nox.Session) -> None:
    """Check the rules and the format of the code, the types of the emulator's page, and the repository's YAML."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    npm = Path(session.virtualenv.location) / "npm"
    wanted = ("package.json", "package-lock.json")

    def install() -> None:
        npm.mkdir(exist_ok=True)
        for name in wanted:
            shutil.copy(name, npm)
        session.run("npm", "ci", "--prefix", str(npm), "--ignore-scripts", "--no-audit", "--no-fund", silent=True)

    once(session, wanted, install)
    session.run("node", str(npm / "node_modules" / "typescript" / "bin" / "tsc"), "--project", "jsconfig.json")
    for schema, files in YAML.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files, silent=True)
    session.run("zizmor", "--offline", "--no-progress", "--quiet", ".github")


@nox.session(default=False, reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Run the tests of some modules or folders in one process, with few examples: `nox -s quick -- sender spool`.

    Endurance tests are left out. The first argument that begins with a dash, and all later ones, are passed to pytest.
    """
    names = list(takewhile(lambda argument: not argument.startswith("-"), session.posargs))
    options = session.posargs[len(names) :]
    if not names:
        session.error("which tests? For example: nox -s quick -- sender")
    paths = [path for name in names for path in tests_of(session, name)]
    once(session, ["pyproject.toml"], lambda: session.install("-e", f".{EXTRAS}", *group("test")))
    few = ("--hypothesis-profile=few", "-m", "not endurance")
    session.run("python", "-m", "pytest", "-q", *few, *paths, *options)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the package, and of files that use all of its public names, with strict mypy and pyright."""
    session.install("-e", f".{EXTRAS}", *group("typing"))
    mypy = ("mypy", "retailrocket_async", "pytest_retailrocket_async.py", "examples", "tests/typing")
    # mypy and pyright run at the same time, because each uses one core. Their output is printed only if they fail.
    with ThreadPoolExecutor() as both:
        for judged in [both.submit(session.run, *judge, silent=True) for judge in (mypy, ("pyright",))]:
            session.log(str(judged.result()).strip().splitlines()[-1])


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation. A warning counts as an error."""
    session.install("-e", f".{EXTRAS}", *group("docs"))
    session.run(
        "sphinx-build", "-W", "--keep-going", "-j", "auto", "-b", "html", "docs", "docs/_build/html", *session.posargs
    )


OTHER_PYTHON = newest_other_python()


@nox.session(python=OTHER_PYTHON, venv_backend="uv")
def wheel(session: nox.Session) -> None:
    """Run most tests on the built wheel, in a folder that contains only the unpacked sdist without the package.

    The tests run on the newest other installed Python that the package supports, or on this Python if there is no
    other, and coverage is not measured. Every dependency is at its lower bound, if that version has a wheel for this
    Python. `nox -s pythons` runs all tests on every installed Python.
    """
    session.log(f"the newest other Python is {OTHER_PYTHON}")
    tmp = Path(session.create_tmp()).resolve()
    shutil.rmtree(tmp)
    tmp.mkdir()
    pins = tmp / "lowest.txt"
    pins.write_text("\n".join(lowest()) + "\n", encoding="utf-8")
    session.run("uv", "build", "--out-dir", str(tmp), silent=True)
    [sdist], [built] = tmp.glob("*.tar.gz"), tmp.glob("*.whl")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no extraction filters. The archive is safe without a filter, as it was built above.
        archive.extractall(tmp, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # noqa: S202
    tree = tmp / sdist.name.removesuffix(".tar.gz")
    # The sources are moved away, so that the tests can only import the installed wheel.
    (tree / "retailrocket_async").rename(tmp / "sources")
    (tree / "pytest_retailrocket_async.py").unlink()
    wanted = (f"retailrocket-async{EXTRAS} @ {built.as_uri()}", *group("test"))
    # The `tests` session uses the newest versions of the dependencies, so this session uses their lower bounds.
    constraint = ("--constraint", str(pins))
    dry = ("uv", "pip", "install", "--dry-run", "--only-binary", ":all:")
    if "Wheels are required for" in str(session.run(*dry, *wanted, *constraint, silent=True, success_codes=[0, 1, 2])):
        session.log("not every lower bound has a wheel for this Python: taking the newest versions")
        constraint = ()
    session.install(*wanted, *constraint)
    session.chdir(tree)
    where = "import retailrocket_async as package; assert 'site-packages' in package.__file__, package.__file__"
    session.run("python", "-c", where)
    compile_tests(session, *SHORT)
    session.run("python", "-m", "pytest", *spread(5), *SHORT, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, and measure branch coverage in every process that the tests start."""
    session.install("-e", f".{EXTRAS}", *group("test"))
    session.run("coverage", "erase")
    # While coverage is measured, Hypothesis tests run with few examples. They run with all examples in the `wheel`
    # session, or in the second pytest run. That run is without coverage, because its tests kill processes, flood
    # servers, look at the package from outside, or run the same lines for a long time.
    traced = ("coverage", "run", "-m", "pytest", "--hypothesis-profile=few", "-m")
    plain = ("python", "-m", "pytest", "-m")
    if session.posargs:
        session.run(*traced, "not endurance", *spread(5), *session.posargs)
        # The user's choice may leave no test for this run. pytest's exit code is 5 then.
        session.run(*plain, "endurance or hypothesis", *spread(5), *session.posargs, success_codes=[0, 5])
    else:
        # Both run at the same time, because many of their tests wait. The output of the second is printed at its end.
        modules = [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if untraced(path)]
        with ThreadPoolExecutor() as background:
            marked = "endurance or untraced or hypothesis"
            second = background.submit(session.run, *plain, marked, *spread(3), *modules, silent=True)
            compile_tests(session)
            session.run(*traced, "not endurance and not untraced", *spread(4))
            session.log("the tests without coverage:\n%s", second.result())
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", *(["--fail-under=0"] if session.posargs else []))


@nox.session(python=nox.project.python_versions(PROJECT), default=False)
def pythons(session: nox.Session) -> None:
    """Run the tests on every installed Python that the package supports."""
    session.install("-e", f".{EXTRAS}", *group("test"))
    session.run("python", "-m", "pytest", *spread(5), *session.posargs)


@nox.session(default=False, venv_backend="uv")
def dist(session: nox.Session) -> None:
    """Build the sdist and the wheel into dist/. The changelog must have a section for this version.

    If a tag is given as an argument, the tag must name this version.
    """
    version = PROJECT["project"]["version"]
    if session.posargs and session.posargs != [f"v{version}"]:
        session.error(f"the tag {' '.join(session.posargs)} is not v{version}, the version in pyproject.toml")
    if f"\n## [{version}] - " not in Path("CHANGELOG.md").read_text("utf-8"):
        session.error(f"CHANGELOG.md has no section for {version}: give the section Unreleased this name and a date")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("uv", "build", "--out-dir", "dist")


@nox.session(default=False)
@nox.parametrize("extra", ["none", *PROJECT["project"]["optional-dependencies"], "all"])
def extras(session: nox.Session, extra: str) -> None:
    """Install no extra, each extra alone, or all extras, and check that the promised modules can be used."""
    session.install({"none": ".", "all": f".{EXTRAS}"}.get(extra, f".[{extra}]"))
    session.run("python", "-I", "tests/support/extras.py", extra)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz every function that reads data from outside, then check its time and memory on large hostile input.

    The argument is the number of minutes for fuzzing; default 10.
    """
    session.install("-e", f".{EXTRAS}", *group("test"), *group("fuzz"))
    session.run("python", "-m", "tests.fuzz.run", *session.posargs)
    session.run("python", "-m", "tests.fuzz.bounds")


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Check that the package with all extras would install no version that is known to be vulnerable."""
    session.install("pip-audit>=2.10")
    wanted = Path(session.create_tmp()) / "wanted.txt"
    project = PROJECT["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    wanted.write_text("\n".join([*project["dependencies"], *extras]) + "\n", encoding="utf-8")
    # With --strict, a package that cannot be looked up is an error.
    session.run("pip-audit", "--strict", "--progress-spinner=off", "--requirement", str(wanted), *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure the cost of an event, also compared with other libraries, and check bounds; takes 20 minutes."""
    session.install("-e", f".{EXTRAS}", *group("bench"))
    session.run("python", "-m", "benchmarks.bench", *session.posargs)


@nox.session(default=False)
def limit(session: nox.Session) -> None:
    """Prove that the client never exceeds the request limit, and makes full use of the limit; takes minutes."""
    session.install("-e", f".{EXTRAS}")
    session.run("python", "-m", "acceptance.limit", *session.posargs)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Prove the outcome of every event under every fault; takes minutes."""
    session.install("-e", f".{EXTRAS}")
    session.run("python", "-m", "acceptance.faults", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Prove that no event of a million is lost if the server fails at random; takes minutes, on Linux only."""
    session.install("-e", f".{EXTRAS}")
    session.run("python", "-m", "acceptance.soak", *session.posargs)


@nox.session(default=False)
def fleet(session: nox.Session) -> None:
    """Prove that spool, shared limit and relay work across processes, on real servers; takes half an hour."""
    session.install("-e", f".{EXTRAS}", *group("test"))
    session.run("python", "-m", "acceptance.fleet", *session.posargs)
