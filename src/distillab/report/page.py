"""A report as one HTML page that needs nothing else: no network, no other file, no script to be read."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from distillab import __version__
from distillab.report.document import Document
from distillab.tables import ABSENT

_TEMPLATES = resources.files("distillab.report") / "templates"


def as_html(document: Document) -> str:
    """The page. Equal documents give equal bytes.

    Every name in it is escaped, and its content policy lets run and load nothing but the style and the script that are
    in it, by their hashes, and images that are in it as well.

    Args:
        document: What it says.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distillab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = _typeset
    style, script = (_template(name) for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        document=document,
        headline=_with_asides(document.headline),
        style=style,
        script=script,
        policy=(
            f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'"
        ),
        version=__version__,
    )


def _with_asides(sentence: str) -> list[str]:
    """A sentence in parts, of which every second one is in brackets; no line breaks before a percent sign."""
    return re.split(r"(\([^()]*\)\.?)", sentence.replace(" %", "\N{NO-BREAK SPACE}%"))


def _typeset(cell: str) -> str:
    """A number with a minus sign as wide as a plus sign; a dash where there is none."""
    if cell == ABSENT:
        return "\N{EN DASH}"
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", cell) if re.fullmatch(r"[-+.,\d to]+", cell) else cell


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
