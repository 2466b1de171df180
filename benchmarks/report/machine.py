"""Names the machine, the Python and the library versions on which figures were measured."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

import attrs

_NAMED = (
    "retailrocket-async",
    "httpx",
    "orjson",
    "attrs",
    "cattrs",
    "aiolimiter",
    "tenacity",
    "segment-analytics-python",
    "rudder-sdk-python",
    "posthog",
    "amplitude-analytics",
    "snowplow-tracker",
    "mixpanel",
    "aiohttp",
)


@attrs.frozen(kw_only=True)
class Machine:
    """The environment that the figures of a run depend on.

    Attributes:
        processor: the model, as far as the system knows it.
        cores: the number of cores that this process may use.
        system: name and version of the operating system.
        python: implementation and version.
        versions: the version of each measured distribution that is installed, by name.
        day: the date of the run in UTC.
    """

    processor: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    day: str

    @classmethod
    def here(cls) -> Self:
        """Return the environment of this process."""
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
            system=f"{platform.system()} {platform.release()}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            versions={name: found for name in _NAMED if (found := _version(name)) is not None},
            day=datetime.now(UTC).date().isoformat(),
        )

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {found}" for name, found in self.versions.items())
        return (
            f"{self.day}: {self.processor}, {self.cores} core{'s' * (self.cores != 1)}, {self.system}, {self.python}; "
            f"{versions}."
        )


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", about.read_text("utf-8"), re.MULTILINE) if about.exists() else None
    return found[1] if found is not None else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
