"""HTML renderer of a suite's document: one page that fetches nothing, with tables to sort and filter."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import jinja2

from peftlab.reports.document import Cell, Document, Figure
from peftlab.reports.figures import draw
from peftlab.reports.formatting import DASH

TEMPLATE = "page.html"


def render(document: Document, *, root: str) -> str:
    """The document as an HTML page. root: path from the folder of the page to the suite's folder, such as ".."."""
    return _environment().get_template(TEMPLATE).render(document=document, root=root)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["image"] = _image
    environment.filters["sort_key"] = _sort_key
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.globals["dash"] = DASH
    return environment


def _image(figure: Figure) -> str:
    """The figure as a data URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(draw(figure.plot, 'svg')).decode()}"


def _sort_key(cell: Cell) -> str:
    """The cell's value, which the page's script sorts by; "" sorts last."""
    if cell.value is None:
        return ""
    return cell.value if isinstance(cell.value, str) else f"{cell.value:.10g}"
