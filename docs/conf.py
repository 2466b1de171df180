"""Configure Sphinx, which builds the documentation."""

import html
import importlib
import itertools
import re
import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

project = "retailrocket-async"
author = "retailrocket-async contributors"
copyright = "2026, retailrocket-async contributors"
version = release = version_of("retailrocket-async")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# docs/benchmarks.md includes the tables.
exclude_patterns = ["_build", "_generated", "benchmarks/tables.md"]

html_theme = "furo"
html_title = f"{project} {release}"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
# `Batching.linger` in a docstring becomes a link if the reference has that name, and plain code if not.
default_role = "py:obj"


def plain_defaults(_app, _what, _name, _obj, _options, signature, returns):  # noqa: ANN001, ANN201
    """Show a default that is computed at construction as an ellipsis in the reference."""
    if signature is None:
        return None
    for computed in ("NOTHING", "_Nothing.NOTHING"):
        signature = signature.replace(f"={computed}", "=...").replace(f" = {computed}", " = ...")
    return signature, returns


def commands() -> str:
    """Return the help of every command, as Markdown."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "retailrocket_async.cli._app",
        "utils",
        "docs",
        "--name",
        "retailrocket-async",
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - a fixed command
    text = html.unescape(output).partition("\n")[2].replace("$ retailrocket-async", "retailrocket-async")
    text = re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", text)
    # The help indents examples by two spaces; Markdown needs four to show them as code.
    text = re.sub(
        r"^( {2}\S.*(?:\n {2}.*)*)",
        lambda found: "\n" + re.sub("^", "  ", found[1], flags=re.MULTILINE),
        text,
        flags=re.MULTILINE,
    )
    return "\n".join(line.rstrip() for line in text.split("\n"))


def write_commands(_app):  # noqa: ANN001, ANN201
    """Write the help of the commands to the file that docs/commands.md includes."""
    page = Path(__file__).parent / "_generated" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(commands(), "utf-8")


def keep_source_order(_app):  # noqa: ANN001, ANN201
    """Have autodoc list the members of public classes by source, own before inherited.

    Autodoc looks for the order in the module that a class reports, which for a public class is not its file.
    """
    for edge in ("", ".emulator", ".redis", ".relay", ".testing"):
        module = importlib.import_module(f"retailrocket_async{edge}")
        analyzer = ModuleAnalyzer.for_module(module.__name__)
        analyzer.analyze()
        position = itertools.count(len(analyzer.tagorder))
        for public in module.__all__:
            thing = getattr(module, public)
            if isinstance(thing, type):
                for member in dict.fromkeys(member for base in thing.__mro__ for member in vars(base)):
                    analyzer.tagorder.setdefault(f"{public}.{member}", next(position))


def setup(app):  # noqa: ANN001, ANN201
    """Register the two functions above with Sphinx."""
    app.connect("builder-inited", write_commands)
    app.connect("builder-inited", keep_source_order)
    app.connect("autodoc-process-signature", plain_defaults)
