"""A suite's tables as Markdown, CSV and LaTeX, made of its results alone. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peftlab.errors import UserError
from peftlab.profiling.profile import Memory, Profile
from peftlab.reports import text
from peftlab.reports.analysis import Analysis, Line, analyze
from peftlab.reports.columns import (
    DASH,
    Column,
    cost_columns,
    effective_parameters,
    memory_columns,
    result_columns,
    saved_bytes,
    speed_columns,
    title,
)
from peftlab.reports.published import HEADS, heading, published
from peftlab.suites.profiles import ProfileStore
from peftlab.suites.store import Store
from peftlab.suites.suite_file import load_suite


def read_analysis(folder: Path) -> Analysis:
    """Raises UserError if there is nothing to show: no result, nor a published one that ours is to stand beside."""
    findings = analyze(load_suite(folder), Store(folder).records(), ProfileStore(folder).records())
    if not findings.suite.published and not any(findings.begun(task) for task in findings.suite.tasks):
        raise UserError(f"{folder}: no results yet; `peftlab bench {folder}` makes them")
    return findings


def tables(findings: Analysis) -> dict[str, str]:
    """All forms, by file name."""
    from peftlab.reports.latex import document

    return {
        "table.md": markdown(findings),
        "table.tex": document(findings),
        "table.csv": comma_separated(findings),
        "references.bib": "\n".join(f"{reference.entry()}\n" for reference in text.references(findings)),
    }


def markdown(findings: Analysis) -> str:
    """For reading on a screen."""
    suite, notes = findings.suite, text.Notes()
    parts = [
        f"# {suite.name}",
        suite.description + "." if suite.description else "",
        f"Written by `peftlab table` from `results/`; do not edit. Protocol: {suite.protocol}.",
    ]
    for task in suite.tasks:
        lines = findings.of_task(task)
        if not findings.begun(task):
            parts += [f"## {task}", *text.to_come(findings, task), *_published(findings, task)]
            continue
        results = _table(lines, result_columns(findings, task), notes.marker(text.remarks))
        parts += [f"## {task}", results, *text.judgement(findings, task)]
        parts += _published(findings, task)
        parts += ["### Cost", _table(lines, cost_columns(findings, task)), text.costs(suite)]
        if findings.measured(task):
            parts += ["### Memory", _table(lines, memory_columns(findings, task), notes.marker(text.profile_remarks))]
            parts += text.memory(findings, task)
            parts += ["### Operations and times", _table(lines, speed_columns(findings)), text.speed(findings)]
        parts += ["### Learning rates", text.choices(suite), _trials(findings, task)]
    parts += _published(findings, None)
    if notes.texts:
        parts += ["## Notes", "\n".join(f"- {notes.letter(i)}: {text}" for i, text in enumerate(notes.texts))]
    if setup := text.setup(findings):
        parts += ["## Experimental setup", *setup]
    return "\n\n".join(part for part in parts if part) + "\n"


def comma_separated(findings: Analysis) -> str:
    """One row a combination, to ten digits."""
    rows = [_values(findings, line) for line in findings.lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(
    lines: Sequence[Line],
    columns: Sequence[Column],
    marked: Callable[[Line], Sequence[str]] = lambda line: (),
) -> str:
    rows = [
        "| method | base | " + " | ".join(column.title for column in columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for line in lines:
        method, base = title(line)
        marks = ", ".join(marked(line))
        cells = []
        for column in columns:
            text = column.text(line) or DASH
            cells.append(f"**{text}**" if column.bold and line.tied else text)
        rows.append(f"| {method}{f' [{marks}]' if marks else ''} | {base} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _trials(findings: Analysis, task: str) -> str:
    """Every rate that was tried and its score on validation; the chosen one bold."""
    rows = ["| method | base | rate: validation score |", "|---|---|---|"]
    for row, search in findings.plan.searches.items():
        if row.task != task or not search.trials:
            continue
        line = next(line for line in findings.lines if line.row == row)
        ended = {stored.recipe.digest: stored.record for stored in line.trials}
        cells = []
        for recipe, score in zip(search.trials, search.scores, strict=True):
            record = ended.get(recipe.digest)
            found = DASH if record is None else record.state if score is None else f"{line.sign * score:.4f}"
            text = f"{recipe.learning_rate:g}: {found}"
            cells.append(f"**{text}**" if recipe.learning_rate == search.rate else text)
        flags = {(True, True): "extended, still at the edge", (True, False): "extended", (False, True): "at the edge"}
        flag = flags.get((search.extended, search.at_edge))
        rows.append(f"| {' | '.join(title(line))} | {', '.join(cells)}{f' ({flag})' if flag else ''} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _published(findings: Analysis, task: str | None) -> list[str]:
    """A paper's rows beside ours."""
    rows = published(findings, task)
    if not rows:
        return []
    heads = [f"| {' | '.join(HEADS)} |", "|---|---|---:|---:|---:|---|---|"]
    text = "\n".join([*heads, *(f"| {' | '.join(_cell(cell) for cell in row.cells)} |" for row in rows)])
    return [f"{'###' if task is not None else '##'} {heading(task)}", text]


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or DASH


def _values(findings: Analysis, line: Line) -> dict[str, Any]:
    suite, results = findings.suite, line.results or line.trial_results
    low, high = line.interval or (None, None)
    gap = None if line.comparison is None else line.comparison.difference
    gap_low, gap_high = line.gap or (None, None)
    parameters = results[0].parameters if results else None
    values: dict[str, Any] = {
        "task": line.row.task,
        "method": line.row.method,
        "quantization": line.row.quantization,
        "protocol": suite.protocol,
        "metric": findings.metric(line.row.task),
        "split": suite.split,
        "learning_rate": None if line.search is None else line.search.rate,
        "learning_rate_at_edge": None if line.search is None else line.search.at_edge,
        "seeds": line.wanted,
        "done": line.states["done"],
        "diverged": line.states["diverged"],
        "otherwise": sum(line.states.values()) - line.states["done"] - line.states["diverged"],
        "mean": None if line.score is None else line.score.mean,
        "deviation": None if line.score is None else line.score.std,
        "low": low,
        "high": high,
        "difference": None if gap is None else gap.value,
        "difference_low": gap_low,
        "difference_high": gap_high,
        "p": line.p,
        "p_no_worse": line.p_no_worse,
        "p_equivalent": line.p_equivalent,
        "test": None if line.comparison is None else line.comparison.test,
        "tied_for_best": None if line.score is None else line.tied,
        "method_parameters": None if parameters is None else parameters.method,
        "head_parameters": None if parameters is None else parameters.head,
        "trainable_parameters": None if parameters is None else parameters.trainable,
        "base_parameters": None if parameters is None else parameters.base,
        "saved_bytes": saved_bytes(line),
        "process_peak_bytes": line.high_water_bytes,
        "refused": line.refused,
    }
    if any(effective_parameters(other) is not None for other in findings.lines):
        values["trainable_parameters_at_the_end"] = effective_parameters(line)
    if any(other.measured is not None for other in findings.lines):
        values |= {"ledger": line.measured.record.state if line.measured else None, **_ledger_values(line.ledger)}
    return {key: _plain(value) for key, value in values.items()}


def _ledger_values(ledger: Profile | None) -> dict[str, Any]:
    """Bytes, operations a padded token, seconds."""
    times, inference = (ledger.times, ledger.inference) if ledger else (None, None)
    quartiles = times.quartiles if times else (None, None)
    return {
        "ledger_examples": ledger and ledger.examples,
        "ledger_length": ledger and ledger.length,
        **{
            f"{'ledger_' if name == 'process_peak' else ''}{name}_bytes": ledger and getattr(ledger.memory, name)
            for name in Memory.model_fields  # the runs have a peak of the process too
        },
        "forward_flops": ledger and ledger.flops.forward,
        "backward_flops": ledger and ledger.flops.backward,
        "step_seconds": times and times.median,
        "step_seconds_low": quartiles[0],
        "step_seconds_high": quartiles[1],
        "tokens_per_second": times and times.tokens_per_second,
        "matrix_rate": times and times.matrix_rate,
        "processor_share": times and times.processor_share,
        **{f"{name}_seconds": inference and getattr(inference, name) for name in ("unmerged", "merged", "base")},
        "merge_error": inference and inference.merge_error,
    }


def _plain(value: Any) -> Any:
    """Ten digits of a float: the order of a sum on another machine does not show in them."""
    return f"{value:.10g}" if isinstance(value, float) else "" if value is None else value
