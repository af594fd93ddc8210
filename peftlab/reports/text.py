"""Paragraphs that explain a suite's tables."""

from __future__ import annotations

from peftlab.reports.analysis import Analysis
from peftlab.reports.significance import power
from peftlab.suites.suite import Suite


def explain_results(analysis: Analysis, task: str) -> list[str]:
    """How the result table was computed, its power, and the runs that are missing."""
    suite, rows = analysis.suite, analysis.of_task(task)
    if all(row.score is None for row in rows):
        return missing_runs(analysis, task)
    compared = sum(row.comparison is not None for row in rows)
    tests = " and ".join(sorted({row.comparison.test for row in rows if row.comparison is not None}))
    paragraphs = [
        "Mean ± sample standard deviation over n seeds. Bold: not significantly different from the best "
        f"({tests or 'no comparison was possible'}, Holm-adjusted, 5 %). Intervals are 95 % confidence intervals over "
        f"seeds and {suite.split} examples. Differences are to {suite.reference}, paired by example. p: two-sided, "
        f"against no difference. Non-inferiority p: one-sided, against being worse by {suite.margin:g} or more (one of "
        f"the two tests of TOST). Both are Holm-adjusted over {compared} comparisons. Intervals are not adjusted: one "
        "can exclude 0 although p is above 0.05."
    ]
    paragraphs += explain_power(analysis, task)
    baseline = analysis.constant_baseline(task)
    if baseline is not None:
        rule = rows[0].recipe.task.baseline_rule
        paragraphs.append(f"The constant baseline, which {rule}, scores {baseline:.4f}.")
    if any(row.estimate is not None and row.interval is None for row in rows):
        paragraphs.append("A row has no interval if neither the seed nor resampling the examples changes its score.")
    if any(row.score is not None and row.score.n == 1 for row in rows):
        paragraphs.append(
            "A row with n = 1 describes one trained model, not the method: the variance between seeds is unknown."
        )
    return paragraphs + missing_runs(analysis, task)


def missing_runs(analysis: Analysis, task: str) -> list[str]:
    """Number of planned runs that have not ended; no paragraph if there are none."""
    rows = [row for row in analysis.of_task(task) if row.incompatibility is None]
    missing = sum(row.seeds - len(row.runs) for row in rows if not row.all_trials_failed)
    return [f"{missing} of {sum(row.seeds for row in rows)} runs are missing."] if missing else []


def explain_power(analysis: Analysis, task: str) -> list[str]:
    """Differences that the tests of the task detect, as far as the metric can have such differences."""
    rows = analysis.of_task(task)
    detectable = power(rows)
    if detectable is None:
        return []
    possible = min(row.max_difference for row in rows if row.comparison is not None)
    if detectable.smallest >= possible:
        return [
            "Power: none. The strictest test of this table has a power of 80 % for no difference that "
            f"{analysis.metric(task)} can have; a difference that is not significant is no evidence of equality."
        ]
    largest = f"of {detectable.largest:.4f}" if detectable.largest < possible else "of no possible size"
    paragraph = (
        "Power: with 80 % probability, the strictest test of this table detects a difference of "
        f"{detectable.smallest:.4f} in the row with the least variance and {largest} in the row with the most; "
        "smaller differences may go undetected."
    )
    suite = analysis.suite
    if detectable.margin > suite.margin:
        paragraph += (
            f" A method equal to {suite.reference} is shown to be non-inferior with that probability only from a "
            f"margin of {detectable.margin:.4f} on: {suite.margin:g} is too narrow for these seeds and examples."
        )
    return [paragraph]


def explain_cost(suite: Suite) -> str:
    paragraph = (
        "Parameters of the method and of the task head. Peak process memory: peak resident memory of the process, "
        "libraries included. Padding: fraction of all token positions. Training tokens: without padding. Best "
        "checkpoint at: fraction of the optimizer steps after which the kept checkpoint was reached, median of the "
        "runs."
    )
    return paragraph if suite.own_machine else f"{paragraph} Times are omitted: other work used the machine."


def explain_memory(analysis: Analysis, task: str) -> list[str]:
    shapes = {(profile.examples, profile.length) for row in analysis.of_task(task) if (profile := row.profile)}
    batches = " or ".join(f"{examples} x {length}" for examples, length in sorted(shapes))
    paragraphs = [
        f"Tensors on the device in a steady-state training step over a batch of {batches} tokens without padding, in "
        "MiB. Activations: at the end of the forward pass. Transient: memory at the peak beyond that at the end of any "
        "phase. The peak also includes the batch, and either activations or gradients. Evaluation peak: of a pass "
        "without gradients."
    ]
    rows = [row for row in analysis.of_task(task) if row.incompatibility is None]
    missing = sum(row.stored_profile is None for row in rows)
    if missing:
        paragraphs.append(f"{missing} of {len(rows)} profiles are missing.")
    return paragraphs


def explain_compute(analysis: Analysis) -> str:
    name = analysis.suite.reference
    return (
        "FLOPs of matrix products per padded token, two per multiply-add. Step time (median with quartiles) and "
        f"tokens/s are relative to {name} on the same machine and batch. Each profile is timed in a process of its own "
        "and scaled by the speed of a large matrix product in that process, because the speed of a shared machine "
        "varies; notes mark rows whose timing other processes disturbed. Share of peak matmul: FLOPs per second of a "
        "step over those of that product. Latency: of a forward pass, relative to the base model without the method; "
        f"of the base model, relative to a model tuned with {name}. Merge error: largest change of an output."
    )


def explain_learning_rates(suite: Suite) -> str:
    trials = suite.trials
    if trials.points == 1:
        return "Learning rates are given, not searched."
    scope = "separately for each quantization" if trials.per_quantization else "with the method's first quantization"
    extensions = ""
    if trials.extensions:
        number = "one more" if trials.extensions == 1 else f"up to {trials.extensions} more"
        extensions = f"; {number} beyond the grid if the best is at its edge"
    return (
        f"Learning rates: {trials.points} per method, a factor of {trials.factor:g} apart, around its base learning "
        f"rate{extensions}; selected on the validation split with seed {trials.seed}, {scope}."
    )
