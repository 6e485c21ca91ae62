"""How the documentation is built: sphinx-build -W -n -b html docs docs/_build/html."""

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils import urischemes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

import distmf

DOCS = Path(__file__).parent

urischemes.schemes.pop("tcp", None)  # tcp://host:8786 in the help of a command is nothing to follow

project, author, release = "distmf", "The distmf developers", distmf.__version__
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_click"]
exclude_patterns = ["_build"]
default_role = "code"  # of `names` in docstrings

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # of what level headings can be linked to, as on a code host

autodoc_typehints = "none"  # docstrings say types, with shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False  # autodoc shows them

smartquotes = False  # "--rank" is not a dash

html_theme = "furo"
html_title = f"distmf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"


def mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """Return a formula as MathML, which browsers show without a script."""
    try:
        return str(tex2mathml(node.astext(), as_block=as_block))
    except MathError as err:
        raise SphinxError(f"{node.source}:{node.line}: {node.astext()!r}: {err}") from err


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    self.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def escape_initials(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep a reference that begins with an initial, such as "Y. Koren", from being a list with the item Y."""
    lines[:] = [re.sub(r"^(\.\. \[[^\]]+\] )(?=\w\. )", r"\1\\", line) for line in lines]


def copy_markdown(app: Sphinx, doctree: nodes.document) -> None:
    """Turn links to Markdown that is not part of the site, such as deploy/README.md, into links to copies of it."""
    for link in list(doctree.findall(pending_xref)):
        path = Path(link["reftarget"] + ".md")
        if link["refdomain"] == "doc" and path.is_file() and not path.is_relative_to(DOCS):
            target = "/" + os.path.relpath(path, DOCS)
            link.replace_self(download_reference("", "", *link.children, reftarget=target, refdoc=link["refdoc"]))


def setup(app: Sphinx) -> None:
    """Add what is above."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.connect("autodoc-process-docstring", escape_initials, priority=900)  # after numpydoc
    app.connect("doctree-read", copy_markdown, priority=100)  # before Sphinx looks for what is to be copied
