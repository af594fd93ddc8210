"""A suite's results as one HTML page that needs nothing else: a table to sort and filter, the figures, every run."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from peftlab.reports import text
from peftlab.reports.analysis import Analysis, Line
from peftlab.reports.columns import (
    DASH,
    Column,
    cost_columns,
    memory_columns,
    result_columns,
    speed_columns,
    title,
)
from peftlab.reports.figures import STYLE, figures
from peftlab.reports.published import HEADS, heading, published
from peftlab.suites.profiles import StoredProfile
from peftlab.suites.store import FOLDER, Stored


def page(findings: Analysis) -> str:
    """The whole page. Links to results are relative to the suite's folder, where it is meant to stand."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    body = "\n".join(_body(findings))
    return Template(template).substitute(title=escape(f"peftlab: {findings.suite.name}"), body=body)


def _body(findings: Analysis) -> Iterable[str]:
    suite, notes = findings.suite, text.Notes()
    yield f"<h1>{escape(suite.name)}</h1>"
    yield f"<p>{escape(suite.description)}</p><p>Protocol: {suite.protocol}. A number leads to its runs.</p>"
    drawn = list(_images(findings))
    for task in suite.tasks:
        lines = findings.of_task(task)
        yield f"<h2>{escape(task)}</h2>"
        if not findings.begun(task):
            yield from (f"<p>{escape(text)}</p>" for text in text.to_come(findings, task))
            yield from _published(findings, task)
            continue
        columns = [*result_columns(findings, task), *cost_columns(findings, task)]
        yield _filters(lines, task)
        yield _table(lines, columns, task, notes.marker(text.remarks))
        yield from (f"<p>{escape(text)}</p>" for text in (*text.judgement(findings, task), text.costs(suite)))
        yield from _published(findings, task)
        if findings.measured(task):
            yield "<h3>Memory, operations and times</h3>"
            columns = [*memory_columns(findings, task), *speed_columns(findings)]
            yield _table(lines, columns, f"{task}-ledger", notes.marker(text.profile_remarks))
            said = (*text.memory(findings, task), text.speed(findings))
            yield from (f"<p>{escape(text)}</p>" for text in said)
        yield from (image for of_task, image in drawn if of_task == task)
    yield from _published(findings, None)
    if notes.texts:
        items = "".join(
            f'<li id="note-{notes.letter(i)}">{notes.letter(i)}: {escape(text)}</li>'
            for i, text in enumerate(notes.texts)
        )
        yield f"<h2>Notes</h2><ul>{items}</ul>"
    if setup := text.setup(findings):
        yield "<h2>Experimental setup</h2>" + "".join(f"<p>{escape(text)}</p>" for text in setup)
    yield "<h2>Runs</h2>"
    yield from (_runs(findings, line) for line in findings.lines)


def _filters(lines: Sequence[Line], task: str) -> str:
    selects = []
    for number, name in enumerate(("method", "base")):
        words = dict.fromkeys(title(line)[number] for line in lines)
        options = "".join(f"<option>{escape(word)}</option>" for word in words)
        selects.append(f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>')
    return f'<form data-table="table-{task}">{"".join(selects)}</form>'


def _table(lines: Sequence[Line], columns: Sequence[Column], name: str, marked: Callable[[Line], Iterable[str]]) -> str:
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(head)}</button></th>'
        for head in ("method", "base", *(column.title for column in columns))
    )
    rows = []
    for line in lines:
        method, base = title(line)
        marks = ",".join(f'<a href="#note-{m}">{m}</a>' for m in marked(line))
        marks = f"<sup>{marks}</sup>" if marks else ""
        cells = [f'<td data-value="{escape(method)}">{escape(method)}{marks}</td>']
        cells.append(f'<td data-value="{escape(base)}">{escape(base)}</td>')
        cells += [_cell(line, column) for column in columns]
        rows.append(f'<tr data-method="{escape(method)}" data-base="{escape(base)}">{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table id="table-{name}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _published(findings: Analysis, task: str | None) -> Iterable[str]:
    """Another paper's rows beside ours."""
    rows = published(findings, task)
    if not rows:
        return
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in HEADS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell or DASH)}</td>' for cell in row.cells)}</tr>" for row in rows)
    yield f"<h3>{heading(task)}</h3>"
    yield f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(line: Line, column: Column) -> str:
    text = column.text(line)
    if not text:
        return f'<td data-value="">{DASH}</td>'
    value = text.replace(",", "").removesuffix(" %")
    if column.value is not None:
        number = column.value(line)
        value = "" if number is None else f"{number:.10g}"
    tied = ' class="tied"' if column.bold and line.tied else ""
    return f'<td{tied} data-value="{escape(value)}"><a href="#row-{line.row.name}">{escape(text)}</a></td>'


def _runs(findings: Analysis, line: Line) -> str:
    """Every run behind a line: score, files, recipe."""
    name = ", ".join((line.row.task, *title(line)))
    items = [_run(findings, stored, trial=False) for stored in line.ended]
    items += [_run(findings, stored, trial=True) for stored in line.trials]
    items += [_measurement(line.measured)] if line.measured is not None else []
    said = "".join(items) or f"<p>{escape(line.refused or 'no run has ended yet')}</p>"
    return f'<details id="row-{line.row.name}"><summary>{escape(name)}</summary>{said}</details>'


def _run(findings: Analysis, stored: Stored, *, trial: bool) -> str:
    recipe, result = stored.recipe, stored.record.result
    what = f"{'trial, ' if trial else ''}seed {recipe.seeds.initialization}, learning rate {recipe.learning_rate:g}"
    shown = escape(f"{stored.record.state}: {stored.record.reason}")
    links = f'<a href="{FOLDER}/{escape(stored.path.name)}">result</a>'
    if result is not None:
        scores = (
            f"{split} {result.selection} " + (f"{found[name]:.4f}" if name in found else "undefined")
            for split, found in result.metrics.items()
            for name in [result.selection]
        )
        shown = escape(", ".join(scores))
        links += f' <a href="{FOLDER}/{escape(stored.predictions_path.name)}">predictions</a>'
    text = escape(json.dumps(recipe.to_record(), indent=1))
    return (
        f"<p>{what}: {shown}. {links}</p><details><summary>recipe {recipe.digest}</summary><pre>{text}</pre></details>"
    )


def _measurement(measured: StoredProfile) -> str:
    shown = "" if measured.record.profile is not None else f": {measured.record.state}: {measured.record.reason}"
    target = f"{measured.path.parent.name}/{measured.path.name}"
    return f'<p>ledger{escape(shown)}. <a href="{escape(target)}">ledger</a></p>'


def _images(findings: Analysis) -> Iterable[tuple[str, str]]:
    """Each figure's task, and the figure."""
    import matplotlib

    for task, name, figure in figures(findings):
        drawing = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(drawing, format="svg", metadata={"Date": None})
        source, said = base64.b64encode(drawing.getvalue()).decode(), escape(f"{task}: {name}")
        yield task, f'<figure><img alt="{said}" src="data:image/svg+xml;base64,{source}"></figure>'
