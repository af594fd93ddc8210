"""Files of a suite's report, in the folder report/ of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftlab.reports import csv_file, latex, markdown
from peftlab.reports.analysis import Analysis
from peftlab.reports.document import Document
from peftlab.reports.figures import Format, write_figures
from peftlab.reports.sections import build_document
from peftlab.reports.setup import references

FOLDER = "report"
ROOT = ".."
"""Path from the report's folder to the suite's."""


def text_files(analysis: Analysis, document: Document) -> dict[str, str]:
    """Contents by file name: tables as Markdown, LaTeX and CSV, and the bibliography."""
    return {
        "table.md": markdown.render(document, root=ROOT),
        "table.tex": latex.render(document),
        "table.csv": csv_file.render(analysis),
        "references.bib": "\n".join(f"{reference.entry()}\n" for reference in references(analysis)),
    }


def write_report(analysis: Analysis, folder: Path, formats: Sequence[Format]) -> list[Path]:
    """Write the tables, the bibliography and the figures, as PNG and in `formats`. Returns the paths."""
    document = build_document(analysis)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in text_files(analysis, document).items():
        paths.append(folder / name)
        paths[-1].write_text(content, encoding="utf-8")
    figures = [(figure.name, figure.plot) for figure in document.figures]
    return paths + write_figures(figures, folder / "figures", list(dict.fromkeys(("png", *formats))))
