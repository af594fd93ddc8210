"""Construction of a suite's document from its analysis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from peftlab.recipe import Recipe
from peftlab.reports import columns, text
from peftlab.reports.analysis import Analysis
from peftlab.reports.document import (
    Block,
    Cell,
    Column,
    Document,
    Figure,
    Footnotes,
    Link,
    Paragraph,
    References,
    Run,
    Runs,
    Section,
    Table,
    TableRow,
)
from peftlab.reports.notes import Notes, profile_notes, result_notes
from peftlab.reports.plots import plots
from peftlab.reports.published import HEADER, published, title
from peftlab.reports.result_row import ResultRow
from peftlab.reports.setup import references, setup
from peftlab.suites.plan import Search
from peftlab.suites.store import FOLDER as RESULTS
from peftlab.suites.store import Stored

ROW_HEADER = (Column("method", numeric=False), Column("precision", numeric=False))


def build_document(analysis: Analysis) -> Document:
    """The document of a suite: a section for each task, then notes, setup and runs."""
    suite, notes = analysis.suite, Notes()
    sections = [_task_section(analysis, task, notes) for task in suite.tasks]
    sections += _published_section(analysis, None)
    if notes.items:
        sections.append(Section("Notes", (Footnotes(notes.items),)))
    if paragraphs := setup(analysis):
        sections.append(Section("Experimental setup", _paragraphs(paragraphs)))
    runs = tuple(_runs(analysis, row) for row in analysis.rows)
    sections.append(Section("Runs", runs, collapsed=True))
    if papers := references(analysis):
        sections.append(Section("References", (References(tuple(papers)),)))
    introduction = (suite.description + "." if suite.description else "", f"Protocol: {suite.protocol}.")
    return Document(suite.name, tuple(paragraph for paragraph in introduction if paragraph), tuple(sections))


def _task_section(analysis: Analysis, task: str, notes: Notes) -> Section:
    if not analysis.started(task):
        missing = _paragraphs(text.missing_runs(analysis, task))
        return Section(task, missing, tuple(_published_section(analysis, task)))
    results = _table(
        analysis,
        task,
        columns.result_columns(analysis, task),
        name=task,
        caption=f"{task}: results",
        explanations=text.explain_results(analysis, task),
        mark=lambda row: notes.marks(result_notes(row)),
    )
    sections = [
        *_published_section(analysis, task),
        *_cost_sections(analysis, task, notes),
        Section("Learning rates", tuple(_learning_rates(analysis, task)), collapsed=True),
        Section("Figures", tuple(Figure(f"{task}-{name}", title, plot) for name, title, plot in plots(analysis, task))),
    ]
    return Section(task, (results,), tuple(section for section in sections if section.blocks))


def _cost_sections(analysis: Analysis, task: str, notes: Notes) -> Iterator[Section]:
    cost = _table(
        analysis,
        task,
        columns.cost_columns(analysis, task),
        name=f"{task}-cost",
        caption=f"{task}: cost",
        explanations=[text.explain_cost(analysis.suite)],
    )
    yield Section("Cost", (cost,))
    if not analysis.profiled(task):
        return
    memory = _table(
        analysis,
        task,
        columns.memory_columns(analysis, task),
        name=f"{task}-memory",
        caption=f"{task}: memory of a training step in MiB",
        explanations=text.explain_memory(analysis, task),
        mark=lambda row: notes.marks(profile_notes(row)),
    )
    yield Section("Memory", (memory,))
    compute = _table(
        analysis,
        task,
        columns.compute_columns(analysis),
        name=f"{task}-compute",
        caption=f"{task}: FLOPs and times",
        explanations=[text.explain_compute(analysis)],
    )
    yield Section("FLOPs and times", (compute,))


def _published_section(analysis: Analysis, task: str | None) -> list[Section]:
    """Comparison with published results, if the suite names any."""
    rows = published(analysis, task)
    if not rows:
        return []
    numeric = ("published", "ours", "tolerance")
    table = Table(
        name=f"{task}-published" if task is not None else "published",
        caption=title(task) if task is None else f"{task}: {title(task).lower()}",
        columns=tuple(Column(name, numeric=name in numeric) for name in HEADER),
        rows=tuple(TableRow(tuple(Cell(cell, cell or None) for cell in row.cells)) for row in rows),
        explanations=(
            "Ours agrees if it is within the tolerance, which is at least 1.96 of its standard errors over seeds.",
        ),
    )
    return [Section(title(task), (table,))]


def _table(
    analysis: Analysis,
    task: str,
    table_columns: Sequence[columns.Column],
    *,
    name: str,
    caption: str,
    explanations: Sequence[str],
    mark: Callable[[ResultRow], tuple[str, ...]] = lambda row: (),
) -> Table:
    rows = []
    for row in analysis.of_task(task):
        cells = [_cell(row, column) for column in table_columns]
        rows.append(TableRow((*_names(row), *cells), mark(row)))
    header = (*ROW_HEADER, *(Column(column.title) for column in table_columns))
    return Table(name, caption, header, tuple(rows), tuple(explanations), filters=len(ROW_HEADER))


def _names(row: ResultRow) -> tuple[Cell, ...]:
    return tuple(Cell(label, label) for label in (columns.method_title(row), columns.precision(row)))


def _cell(row: ResultRow, column: columns.Column) -> Cell:
    shown = column.text(row)
    if not shown:
        return Cell("")
    return Cell(shown, column.value(row), bold=column.mark_best and row.tied_for_best, runs=_anchor(row))


def _learning_rates(analysis: Analysis, task: str) -> Iterator[Block]:
    """Every learning rate that was tried with its validation score, the selected one in bold."""
    rows = []
    searches = {row.combination: row for row in analysis.of_task(task)}
    for combination, search in analysis.plan.searches.items():
        if combination not in searches or not search.trials:
            continue
        row = searches[combination]
        ended = {stored.recipe.digest: stored.record for stored in row.trials}
        for recipe, score in zip(search.trials, search.scores, strict=True):
            record = ended.get(recipe.digest)
            value = None if score is None else row.sign * score
            shown = "" if record is None else record.state if value is None else f"{value:.4f}"
            selected = recipe.learning_rate == search.rate
            cells = [
                Cell(f"{recipe.learning_rate:g}", recipe.learning_rate, bold=selected, runs=_anchor(row)),
                Cell(shown, value, bold=selected, runs=_anchor(row)),
                Cell(_search_outcome(search) if selected else "not selected"),
            ]
            rows.append(TableRow((*_names(row), *cells)))
    if rows:
        metric = f"validation {analysis.metric(task)}"
        header = (*ROW_HEADER, Column("learning rate"), Column(metric), Column("outcome", numeric=False))
        explanations = (text.explain_learning_rates(analysis.suite),)
        yield Table(
            f"{task}-learning-rates",
            f"{task}: learning rates",
            header,
            tuple(rows),
            explanations,
            filters=1,  # the rates of a method hold for several precisions
        )


def _search_outcome(search: Search) -> str:
    extended = "grid extended" if search.extended else ""
    at_edge = "at the edge of the grid" if search.at_edge else ""
    return ", ".join(filter(None, ["selected", extended, at_edge]))


def _runs(analysis: Analysis, row: ResultRow) -> Runs:
    runs = [_run(stored, trial=False) for stored in row.runs]
    runs += [_run(stored, trial=True) for stored in row.trials]
    if row.stored_profile is not None:
        record, path = row.stored_profile.record, row.stored_profile.path
        failure = "" if row.profile is not None else f": {record.state}: {record.reason}"
        links = [Link("profile", f"{path.parent.name}/{path.name}")]
        runs.append(_with_recipe(f"profile{failure}", links, row.stored_profile.recipe))
    name = ", ".join((row.combination.task, columns.method_title(row), columns.precision(row)))
    reason = row.incompatibility or "no run has ended yet"
    return Runs(_anchor(row), name, tuple(runs), "" if runs else reason)


def _run(stored: Stored, *, trial: bool) -> Run:
    recipe, result = stored.recipe, stored.record.result
    name = f"{'trial, ' if trial else ''}seed {recipe.seeds.initialization}, learning rate {recipe.learning_rate:g}"
    links = [Link("result", f"{RESULTS}/{stored.path.name}")]
    if result is None:
        outcome = f"{stored.record.state}: {stored.record.reason}"
    else:
        metric = result.selection
        outcome = ", ".join(
            f"{split} {metric} " + (f"{scores[metric]:.4f}" if metric in scores else "undefined")
            for split, scores in result.metrics.items()
        )
        links.append(Link("predictions", f"{RESULTS}/{stored.predictions_path.name}"))
    return _with_recipe(f"{name}: {outcome}", links, recipe)


def _with_recipe(description: str, links: Sequence[Link], recipe: Recipe) -> Run:
    return Run(description, tuple(links), recipe.digest, json.dumps(recipe.to_record(), indent=1))


def _anchor(row: ResultRow) -> str:
    return f"row-{row.combination.name}"


def _paragraphs(paragraphs: Sequence[str]) -> tuple[Block, ...]:
    return tuple(Paragraph(paragraph) for paragraph in paragraphs)
