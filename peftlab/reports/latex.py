"""A suite's tables as a LaTeX document (booktabs) that compiles as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from peftlab.reports import text
from peftlab.reports.analysis import Analysis, Line
from peftlab.reports.columns import DASH, Column, cost_columns, memory_columns, result_columns, speed_columns, title
from peftlab.reports.published import HEADS, heading, published

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$",
}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])([+-])(?=\d)")


def document(findings: Analysis) -> str:
    """All tables, notes and the setup; cites what references.bib holds."""
    suite, notes = findings.suite, text.Notes()
    parts = [
        f"% Written by `peftlab table` from the results of the suite {suite.name}; do not edit.",
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage[utf8]{inputenc}",
        r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",
        r"\usepackage[margin=2cm,landscape]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for task in suite.tasks:
        lines = findings.of_task(task)
        label = f"{suite.name}-{task}"
        beside = _published(findings, task, f"{label}-published")
        if not findings.begun(task):
            parts += [f"\\paragraph{{{escaped(task)}}}", *map(escaped, text.to_come(findings, task)), *beside]
            continue
        caption = f"{task}. {' '.join(text.judgement(findings, task))}"
        parts.append(_table(lines, result_columns(findings, task), caption, label, notes.marker(text.remarks)))
        parts += beside
        costs = f"{task}, cost. {text.costs(suite)}"
        parts.append(_table(lines, cost_columns(findings, task), costs, f"{label}-cost"))
        if findings.measured(task):
            caption = f"{task}, memory. {' '.join(text.memory(findings, task))}"
            marks = notes.marker(text.profile_remarks)
            parts.append(_table(lines, memory_columns(findings, task), caption, f"{label}-memory", marks))
            caption = f"{task}, operations and times. {text.speed(findings)}"
            parts.append(_table(lines, speed_columns(findings), caption, f"{label}-speed"))
        parts.append(r"\clearpage")  # LaTeX holds some fifty tables that wait for their page, and no more
    parts += _published(findings, None, f"{suite.name}-published")
    parts.append(r"\clearpage")
    if notes.texts:
        parts.append(r"\paragraph{Notes}")
        parts += [f"\\textsuperscript{{{notes.letter(i)}}}~{escaped(text)}.\\\\" for i, text in enumerate(notes.texts)]
    if setup := text.setup(findings):
        parts += [r"\paragraph{Experimental setup}", *map(escaped, setup)]
    if references := text.references(findings):
        parts.append(f"Methods and quantisations as in \\cite{{{','.join(r.key for r in references)}}}.")
        parts += [r"\bibliographystyle{plain}", r"\bibliography{references}"]
    parts.append(r"\end{document}")
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Plain text as LaTeX prints it.

    >>> escaped("50 % of a_b, < 3 ± 1, -0.5")
    '50 \\\\% of a\\\\_b, $<$ 3 $\\\\pm$ 1, $-$0.5'
    """
    plain = "".join(SPECIAL.get(character, character) for character in text)
    return NUMBER.sub(r"$\1$", plain)


def _table(
    lines: Sequence[Line],
    columns: Sequence[Column],
    caption: str,
    label: str,
    marked: Callable[[Line], Sequence[str]] = lambda line: (),
) -> str:
    rows = []
    before = ""
    for line in lines:
        method, base = title(line)
        letters = ",".join(marked(line))
        marks = f"\\textsuperscript{{{letters}}}" if letters else ""
        cells = [escaped(column.text(line) or DASH) for column in columns]
        bold = [column.bold and line.tied for column in columns]
        cells = [f"\\textbf{{{cell}}}" if strong else cell for cell, strong in zip(cells, bold, strict=True)]
        names = ["", base + marks] if method == before else [escaped(method) + marks, base]
        before = method
        rows.append(" & ".join([*names, *cells]) + r" \\")
    heads = ["method", "base", *(column.title for column in columns)]
    return _framed(rows, heads, f"ll{'r' * len(columns)}", caption, label)


def _published(findings: Analysis, task: str | None, label: str) -> list[str]:
    """Another paper's rows beside ours."""
    rows = [" & ".join(escaped(cell or DASH) for cell in row.cells) + r" \\" for row in published(findings, task)]
    over = heading(task) if task is None else f"{task}. {heading(task)}"
    return [_framed(rows, HEADS, "llrrrll", f"{over}.", label)] if rows else []


def _framed(rows: Sequence[str], heads: Sequence[str], alignment: str, caption: str, label: str) -> str:
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            f"\\caption{{{escaped(caption)}}}",
            f"\\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # no wider than the page
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(map(escaped, heads)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )
