"""Makes the package's description on PyPI from README.md: links to files of the repository become absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


class Description(MetadataHookInterface):
    """Sets the field `readme` of the package's metadata; `project.urls.Source` is the address of the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` to the text of README.md, whose links lead to the files of the release that is built."""
        files = f"{metadata['urls']['Source']}/blob/v{metadata['version']}/"
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": RELATIVE_LINK.sub(rf"]({files}\1)", text),
        }
