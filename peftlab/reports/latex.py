"""LaTeX renderer of a suite's document (booktabs); the result compiles as it is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from peftlab.reports.document import (
    Block,
    Column,
    Document,
    Figure,
    Footnotes,
    Paragraph,
    References,
    Runs,
    Section,
    Table,
    TableRow,
)
from peftlab.reports.formatting import DASH

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$",
}  # fmt: skip
SIGN = re.compile(r"(?<![\w.])([+-])(?=\d)")
PREAMBLE = (
    r"\documentclass{article}",
    r"\usepackage[T1]{fontenc}",
    r"\usepackage[utf8]{inputenc}",
    r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",
    r"\usepackage[margin=2cm,landscape]{geometry}",
    r"\usepackage{booktabs,graphicx}",
    r"\setlength{\belowcaptionskip}{6pt}",  # captions stand above their tables
    r"\setcounter{secnumdepth}{0}",
    r"\renewcommand{\refname}{}",  # the section has its own title
    # Figures are files next to the document; a missing one leaves no gap.
    r"\newcommand{\suitefigure}[1]{\noindent\IfFileExists{#1.pdf}{\includegraphics[width=.49\linewidth]{#1.pdf}}"
    r"{\IfFileExists{#1.png}{\includegraphics[width=.49\linewidth]{#1.png}}{}}}",
)
SECTIONS = (r"\section", r"\subsection")
ROWS_PER_PAGE = 32
"""Rows of a table that fit on a page together with a caption of eight lines."""
TITLE_WIDTH = 12
"""Most characters in a line of a column's title, unless a word is longer."""


def render(document: Document) -> str:
    """The document as LaTeX. Figures are included from figures/, citations resolved by references.bib."""
    parts = [
        f"% Written by `peftlab table` from the results of the suite {document.title}; do not edit.",
        *PREAMBLE,
        r"\begin{document}",
        *(escape(paragraph) for paragraph in document.introduction),
    ]
    for section in document.sections:
        parts += _section(document.title, section, level=0)
    parts.append(r"\end{document}")
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Escape plain text for LaTeX.

    >>> escape("50 % of a_b, < 3 ± 1, -0.5")
    '50 \\\\% of a\\\\_b, $<$ 3 $\\\\pm$ 1, $-$0.5'
    """
    return SIGN.sub(r"$\1$", "".join(SPECIAL.get(character, character) for character in text))


def _section(suite: str, section: Section, *, level: int) -> Iterator[str]:
    yield f"{SECTIONS[level]}{{{escape(section.title)}}}"
    for block in section.blocks:
        yield from _block(suite, block)
    if any(isinstance(block, Table) for block in section.blocks):
        yield r"\clearpage"  # keeps tables in their section; LaTeX also holds only some fifty unplaced floats
    for subsection in section.sections:
        yield from _section(suite, subsection, level=level + 1)


def _block(suite: str, block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield escape(block.text) + "\n"
    elif isinstance(block, Table):
        yield from _table(suite, block)
    elif isinstance(block, Figure):
        yield f"\\suitefigure{{figures/{block.name}}}"
    elif isinstance(block, Footnotes):
        yield r"\noindent"
        for letter, text in block.items:
            yield f"\\textsuperscript{{{letter}}}~{escape(text)}.\\\\"
    elif isinstance(block, References):
        keys = ",".join(reference.key for reference in block.references)
        yield f"Methods and quantizations as in \\cite{{{keys}}}."
        yield from (r"\bibliographystyle{plain}", r"\bibliography{references}")
    else:
        yield _runs(block)


def _table(suite: str, table: Table) -> Iterator[str]:
    """The table as one float, or as several if it is longer than a page."""
    label = f"\\label{{tab:{suite}-{table.name}}}"
    caption = " ".join([f"{table.caption}.", *table.explanations])
    for start in range(0, len(table.rows), ROWS_PER_PAGE):
        yield from _float(table, table.rows[start : start + ROWS_PER_PAGE], f"\\caption{{{escape(caption)}}}{label}")
        caption, label = f"{table.caption}, continued.", ""


def _float(table: Table, rows: Sequence[TableRow], caption: str) -> Iterator[str]:
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    yield r"\begin{table}[!ht]"
    yield r"\centering\footnotesize"
    yield caption
    yield r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # no wider than the page
    yield rf"\begin{{tabular}}{{{alignment}}}"
    yield r"\toprule"
    yield " & ".join(_title(column) for column in table.columns) + r" \\"
    yield r"\midrule"
    previous = None
    for row in rows:
        yield _row(row, repeated=bool(table.filters) and row.cells[0].text == previous)
        previous = row.cells[0].text
    yield r"\bottomrule"
    yield r"\end{tabular}}"
    yield r"\end{table}"


def _title(column: Column) -> str:
    """Title of a column on several short lines: a wide one would make the whole table smaller."""
    lines = textwrap.wrap(column.title, TITLE_WIDTH, break_long_words=False, break_on_hyphens=False)
    if len(lines) < 2:
        return escape(column.title)
    text = r" \\ ".join(escape(line) for line in lines)
    return rf"\shortstack[{'r' if column.numeric else 'l'}]{{{text}}}"


def _row(row: TableRow, *, repeated: bool) -> str:
    """A row of the table; a method that stands in the row above is not repeated."""
    cells = [escape(cell.text or DASH) for cell in row.cells]
    cells = [f"\\textbf{{{text}}}" if cell.bold else text for text, cell in zip(cells, row.cells, strict=True)]
    if repeated:
        cells[0] = ""
    if row.notes:
        cells[1 if repeated else 0] += f"\\textsuperscript{{{','.join(row.notes)}}}"
    return " & ".join(cells) + r" \\"


def _runs(runs: Runs) -> str:
    """Names of the files behind a table row."""
    files = ", ".join(link.path for run in runs.runs for link in run.links[:1])
    return f"{{\\footnotesize\\raggedright {escape(runs.title)}: {escape(files or runs.reason)}.\\par}}"
