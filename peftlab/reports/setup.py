"""Experimental setup of a suite, as a paper describes it, and the papers to cite."""

from __future__ import annotations

from collections import Counter

from peftlab.component import Reference
from peftlab.reports.analysis import Analysis
from peftlab.reports.columns import method_title, precision
from peftlab.reports.text import explain_learning_rates
from peftlab.results.run_result import RunResult
from peftlab.suites.suite import Suite
from peftlab.training.settings import Training


def setup(analysis: Analysis) -> list[str]:
    """One paragraph for each task that has a result."""
    return [paragraph for task in analysis.suite.tasks if (paragraph := _of_task(analysis, task))]


def matching(suite: Suite, task: str) -> list[str]:
    """How the methods of a task were brought to the same number of parameters, and by how much they miss it."""
    if suite.match is None:
        return []
    sizes = suite.sizes(task)
    texts = [f"{s.method} {s.name} {s.size} ({s.parameters:,}, {s.excess * 100:+.2g} %)" for s in sizes]
    others = [name for name in suite.methods if name not in {size.method for size in sizes}]
    exempt = [name for name in others if not suite.methods[name].match]
    sizeless = [name for name in others if name not in exempt]
    rest = f"; without a size to adjust: {', '.join(sizeless)}" if sizeless else ""
    rest += f"; not matched: {', '.join(exempt)}" if exempt else ""
    return [
        f"Methods are matched at {suite.match.parameters:,} parameters, heads excluded, as closely as integer sizes "
        f"allow: {', '.join(texts)}{rest}."
    ]


def references(analysis: Analysis) -> list[Reference]:
    """Papers of all methods and quantizations in the suite, each once, by citation key."""
    by_key = {
        reference.key: reference
        for row in analysis.rows
        for reference in (
            *row.recipe.method.references,
            *row.recipe.quantization.references,
            *row.recipe.training.optimizer.references,
        )
    }
    return [by_key[key] for key in sorted(by_key)]


def _of_task(analysis: Analysis, task: str) -> str:
    suite, rows = analysis.suite, analysis.of_task(task)
    result = next((r for row in rows for r in (*row.results, *row.trial_results)), None)
    if result is None:
        return ""
    methods = ", ".join(dict.fromkeys(method_title(row) for row in rows))
    precisions = ", ".join(dict.fromkeys(precision(row) for row in rows))
    seeds = f"{len(suite.seeds)} seed{'s' if len(suite.seeds) > 1 else ''}"
    scored = (
        "The test split was scored once, after training."
        if suite.protocol == "clean"
        else "As published, the score is that of the best epoch on the validation split."
    )
    sentences = [
        f"{task}: {result.recipe['model']['id']} on {result.data_source}, {describe_splits(result)}.",
        f"Methods: {methods}; precision: {precisions}.",
        *matching(suite, task),
        describe_training(rows[0].recipe.training),
        "The loss is the mean over all targets of an optimizer step.",
        *([f"Each run uses {suite.placement.described}."] if suite.placement.processes > 1 else []),
        explain_learning_rates(suite),
        f"Then {seeds} for initialization, data order and dropout, the same for every method.",
        scored,
        f"Environment: {analysis.environments[task]}.",
    ]
    return " ".join(sentences)


def describe_training(training: Training) -> str:
    """Length, batches, optimizer, schedule and regularization."""
    batch = training.batch
    size = f"{batch['tokens']:,} tokens, padding included" if batch["tokens"] else f"{batch['examples']} examples"
    length = f"{training.steps:,} steps" if training.steps is not None else f"{training.passes:g} epochs"
    dropout = "the model's own dropout" if training.dropout is None else f"dropout {training.dropout:g}"
    clip = "no gradient clipping" if training.clip is None else f"gradients clipped at norm {training.clip:g}"
    stop = f", stopped after {training.patience} evaluations without improvement" if training.patience else ""
    checkpoint = "with the best validation score" if training.keep_best else "of the last step"
    optimizer = training.optimizer.settings_text(training.adam_betas, training.adam_epsilon)
    return (
        f"Each run trains for {length} with batches of {size}, {training.optimizer.title} "
        f"({optimizer}, weight decay {training.weight_decay:g} on matrices), {_schedule(training)} after a "
        f"warmup over {training.warmup * 100:g} % of the steps, "
        f"{clip}, {dropout}{stop}; the checkpoint {checkpoint} is kept."
    )


def _schedule(training: Training) -> str:
    """
    >>> _schedule(Training(schedule="wsd", decay_fraction=0.2, minimum_learning_rate=0.1))
    'a wsd schedule (decay over the last 20 % of the steps, shape 1-sqrt) down to 10 % of the peak'
    """
    stable = training.schedule == "wsd"
    decay = f" (decay over the last {training.decay_fraction * 100:g} % of the steps, shape {training.decay_shape})"
    minimum = f" down to {training.minimum_learning_rate * 100:g} % of the peak"
    text = f"a {training.schedule} schedule" + (decay if stable else "")
    return text + (minimum if training.minimum_learning_rate else "")


def describe_splits(result: RunResult) -> str:
    """Number of examples by split, and what preprocessing dropped from all of them."""
    sizes = ", ".join(f"{counts.examples:,} {split}" for split, counts in result.splits.items())
    dropped: Counter[str] = Counter()
    for counts in result.splits.values():
        dropped.update({name: n for name, n in counts.dropped.items() if n})
    losses = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in dropped.items())
    return f"{sizes} examples" + (f" ({losses})" if losses else "")
