"""How the documentation is built."""

from importlib.metadata import version as version_of

project = "retailrocket-async"
author = "retailrocket-async contributors"
copyright = "2026, retailrocket-async contributors"
version = release = version_of("retailrocket-async")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The tables are part of a page.
exclude_patterns = ["_build", "benchmarks/tables.md"]

html_theme = "furo"
html_title = f"{project} {release}"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
# `Batching.linger` in a docstring becomes a link where there is such a thing, and code where there is none.
default_role = "py:obj"


def plain_defaults(_app, _what, _name, _obj, _options, signature, returns):  # noqa: ANN001, ANN201
    """Show a default that is computed at construction as an ellipsis."""
    if signature is None:
        return None
    for computed in ("NOTHING", "_Nothing.NOTHING"):
        signature = signature.replace(f"={computed}", "=...").replace(f" = {computed}", " = ...")
    return signature, returns


def setup(app):  # noqa: ANN001, ANN201
    """Register the above."""
    app.connect("autodoc-process-signature", plain_defaults)
