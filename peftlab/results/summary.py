"""Summary of a result for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from peftlab.results.run_result import RunResult, SplitCounts


def summary(result: RunResult, baseline_rule: str) -> Iterator[tuple[str, str]]:
    """Labels and texts, one pair per line. `baseline_rule` is the task's: what the constant baseline does."""
    for split, scores in result.metrics.items():
        yield split, "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if "/" not in name)
    yield from _baselines(result, baseline_rule)
    yield from _no_gain(result)
    parameters, cost = result.parameters, result.cost
    yield (
        "parameters",
        f"{parameters.trainable:,} trainable ({parameters.trainable_fraction:.2%} of {parameters.base:,}): "
        f"{parameters.method:,} {result.recipe['method']['kind']}, {parameters.head:,} head; "
        f"{cost.adapter_bytes / 2**20:.1f} MiB saved",
    )
    yield (
        "time",
        f"load {cost.load_seconds:.0f} s, train {cost.train_seconds:.0f} s, evaluate {cost.evaluate_seconds:.0f} s; "
        f"{cost.tokens_per_second:,.0f} tokens/s without padding, {cost.padding_fraction:.1%} padding",
    )
    if result.resumes:
        yield "resumed", ", ".join(f"from step {resume.step}" for resume in result.resumes)
    for split, counts in result.splits.items():
        yield from _losses(split, counts)


def _baselines(result: RunResult, rule: str) -> Iterator[tuple[str, str]]:
    for label, baseline, predictor in (
        ("baseline", result.constant_baseline, f"without a model: {rule}"),
        ("base model", result.base_model, "before fine-tuning"),
    ):
        for split, scores in baseline.items():
            if result.selection in scores:
                yield label, f"{split}: {result.selection} {scores[result.selection]:.4f} {predictor}"


def _no_gain(result: RunResult) -> Iterator[tuple[str, str]]:
    """A line for each split on which the model is not shown to be better than the constant baseline.

    The noise of an accuracy is 1.96 standard errors of a binomial proportion; of other metrics it is not estimated.
    """
    name = result.selection
    for split, baselines in result.constant_baseline.items():
        score, baseline = result.metrics.get(split, {}).get(name), baselines.get(name)
        if score is None or baseline is None or split not in result.splits:
            continue
        gain = baseline - score if result.selection_minimized else score - baseline
        examples = result.splits[split].examples
        noise = 1.96 * math.sqrt(score * (1 - score) / examples) if name == "accuracy" and examples else 0.0
        if gain <= noise:
            within = "is no better than"
            if noise and gain > -noise:
                within = f"is within noise (+-{noise:.3f} on {examples:,} examples) of"
            yield (
                "no gain",
                f"{split}: {name} {score:.4f} {within} the baseline's {baseline:.4f}: try a "
                "training.learning_rate 3 to 10 times as high, more training.epochs, more rows, or a larger model",
            )


def _losses(split: str, counts: SplitCounts) -> Iterator[tuple[str, str]]:
    """Lines on data that were not used, or used twice."""
    dropped = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.dropped.items() if count)
    if dropped:
        yield "dropped", f"{split}: {dropped}"
    if counts.skipped:
        yield "skipped", f"rows of {split}: {', '.join(f'{n} ({reason})' for reason, n in counts.skipped.items())}"
    if counts.leaks:
        yield "leaks", f"{counts.leaks:,} of {counts.examples:,} of {split} also occur in train"
