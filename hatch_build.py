"""Makes the description on PyPI of the README: its links to files of the repository become absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


class Description(MetadataHookInterface):
    """Fills the field `readme`; the address of the repository is `project.urls.Source`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Link to the files as they are in the release that is built."""
        files = f"{metadata['urls']['Source']}/blob/v{metadata['version']}/"
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": RELATIVE_LINK.sub(rf"]({files}\1)", text),
        }
