"""Runs the fuzzer atheris on all targets. The inputs it finds are stored, and each run starts from all stored inputs.

::

    python -m tests.fuzz.run [MINUTES] [TARGET ...]

The targets share MINUTES, by default 10. By default all targets run. The folder `.fuzz/` contains the stored inputs
(the corpus), and for each defect a file with the input that shows the defect. When the defect is fixed, this input is
added to `tests/fuzz/cases.py`. The exit status is 1 if a defect was found.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(".fuzz")
MAX_SECONDS = 2
"""The most seconds of processor time for one input of at most 4 KB, while coverage is measured.

Most inputs take a thousandth of this time.
"""

_LIBFUZZER = ["-max_len=4096", "-timeout=20", "-rss_limit_mb=3072", "-print_final_stats=1", "-verbosity=1"]
_INSTRUMENTED = [
    *("retailrocket_async", "csv", "email._parseaddr", "email.utils", "gzip", "httpx._urlparse", "httpx._urls"),
]


class Result(NamedTuple):
    """The result of fuzzing one target."""

    target: str
    executions: int
    seconds: float
    coverage: int
    corpus: int
    failed: bool


def main(arguments: list[str]) -> int:
    """Fuzz the targets one after the other, print their results, and return the exit status."""
    from tests.fuzz.draw import DICTIONARY
    from tests.fuzz.seeds import seeds

    minutes = float(arguments.pop(0)) if arguments and arguments[0].replace(".", "", 1).isdigit() else 10.0
    known = seeds()
    targets = arguments or list(known)
    if unknown := set(targets) - known.keys():
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for folder in ("corpus", "defects"):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in DICTIONARY if word)
    (FOLDER / "dictionary").write_text("".join(f'"{word}"\n' for word in words), encoding="ascii")
    results = []
    for target in targets:
        corpus = FOLDER / "corpus" / target
        corpus.mkdir(exist_ok=True)
        for seed in known[target]:
            (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
        result = _fuzzed(target, corpus, minutes * 60 / len(targets))
        results.append(result)
        _tell(_row(*result[:-1], failed=result.failed))
    _tell(_row("all", sum(each.executions for each in results), sum(each.seconds for each in results), failed=False))
    return int(any(each.failed for each in results))


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _row(target: str, executions: int, seconds: float, coverage: int = 0, corpus: int = 0, *, failed: bool) -> str:
    told = f"{target:12} {executions:>10,} executions {seconds:6.0f} s"
    return told + f" {coverage:>6} edges {corpus:>6} inputs" * bool(coverage) + "   DEFECT" * failed


def _fuzzed(target: str, corpus: Path, seconds: float) -> Result:
    begun = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz.run", "--one", target, *_LIBFUZZER]
    command += [f"-max_total_time={max(1, round(seconds))}", f"-dict={FOLDER / 'dictionary'}"]
    command += [f"-artifact_prefix={FOLDER / 'defects' / target}-", str(corpus)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        _tell(said[-4000:])
    executed = re.search(r"number_of_executed_units: +(\d+)", said)
    states = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)/", said) or [("0", "0")]
    took = time.monotonic() - begun
    return Result(target, int(executed[1]) if executed else 0, took, *map(int, states[-1]), done.returncode != 0)


def one(arguments: list[str]) -> None:
    """Fuzz one target in this process, which ends when fuzzing ends.

    Args:
        arguments: the name of the target, and the arguments of libFuzzer.
    """
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[arguments[0]]

    def case(data: bytes) -> None:
        begun = time.process_time()
        target(data)
        took = time.process_time() - begun
        assert took < MAX_SECONDS, f"{len(data)} bytes took {took:.1f} s"

    atheris.Setup(arguments, case)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
