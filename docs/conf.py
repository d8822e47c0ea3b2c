"""Sphinx: pages run their code, a warning is an error, and nothing is loaded from elsewhere."""

import os
import pathlib
import re
import sys

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import segjax

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # figures.py
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"  # segjax
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "  # pages compile more than they run
    "--xla_force_host_platform_device_count=4"  # functional.md trains on four
)

project, author, version = "segjax", "the segjax authors", segjax.__version__
copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"segjax {version}"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["page.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
nb_number_source_lines = False
nb_output_stderr = "remove"  # the progress of compilers

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["toc.empty_glob"]
default_role = "code"  # of `names` in docstrings


def _math(translator: HTML5Translator, node: nodes.Element) -> None:
    """Writes a formula as MathML, which browsers draw without any script."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    formula = latex2mathml.converter.convert(node.astext(), display=display)
    if "\\" in formula:  # a command that the converter does not know is left as it is
        logging.getLogger(__name__).warning("unknown in a formula: %s", formula, location=node)
    tag = "span" if display == "inline" else "div"
    translator.body.append(f'<{tag} class="formula">{formula}</{tag}>')
    raise nodes.SkipNode


def _plain(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list) -> None:
    """Makes reStructuredText of a docstring, whose stars and bars are meant as they are."""
    new: list[str] = []
    for line in lines:
        if line.lstrip().startswith("| "):  # a table, shown as it is
            if not (new and new[-1].startswith("    |")):
                new += ["", "::", ""]
            new.append("    " + line.lstrip())
            continue
        if new and new[-1].startswith("    |"):
            new.append("")
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        new.append("`".join(parts))
    lines[:] = new


def setup(app: Sphinx) -> None:
    """Registers the renderer of formulas, and what is done to docstrings before all else."""
    app.connect("autodoc-process-docstring", _plain, priority=400)
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
