"""Markdown renderer of a suite's document, for GitHub."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.io.markdown_table import markdown_table
from peftlab.reports.document import (
    Block,
    Document,
    Figure,
    Footnotes,
    Paragraph,
    References,
    Run,
    Runs,
    Section,
    Table,
)
from peftlab.reports.formatting import DASH


def render(document: Document, *, root: str) -> str:
    """The document as Markdown. root: path from the folder of the file to the suite's folder, such as ".."."""
    parts = [
        f"# {document.title}",
        *document.introduction,
        "Written by `peftlab table` from the suite's results; do not edit.",
    ]
    for section in document.sections:
        parts += _section(section, root, level=2)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, root: str, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {section.title}"
    if section.collapsed:
        yield "<details><summary>Show</summary>"
    for block in section.blocks:
        yield from _block(block, root)
    if section.collapsed:
        yield "</details>"
    for subsection in section.sections:
        yield from _section(subsection, root, level=level + 1)


def _block(block: Block, root: str) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield block.text
    elif isinstance(block, Table):
        yield _table(block)
        yield from block.explanations
    elif isinstance(block, Figure):
        yield f"![{block.title}](figures/{block.name}.png)"
    elif isinstance(block, Footnotes):
        yield "\n".join(f"- {letter}: {text}" for letter, text in block.items)
    elif isinstance(block, References):
        yield "\n".join(f"- {r.author} ({r.year}): {r.title}. arXiv:{r.arxiv}" for r in block.references)
    else:
        yield from _runs(block, root)


def _table(table: Table) -> str:
    rows = []
    for row in table.rows:
        cells = [f"**{cell.text}**" if cell.bold else cell.text or DASH for cell in row.cells]
        if row.notes:
            cells[0] += f" [{', '.join(row.notes)}]"
        rows.append(cells)
    numeric = [index for index, column in enumerate(table.columns) if column.numeric]
    return markdown_table([column.title for column in table.columns], rows, right_aligned=numeric)


def _runs(runs: Runs, root: str) -> Iterator[str]:
    yield f"**{runs.title}**" + (f": {runs.reason}" if runs.reason else "")
    if runs.runs:
        yield "\n".join(_run(run, root) for run in runs.runs)


def _run(run: Run, root: str) -> str:
    links = ", ".join(f"[{link.text}]({root}/{link.path})" for link in run.links)
    return f"- {run.text} ({links})"
