"""CSV of a suite: one row per combination, with floats to ten digits."""

from __future__ import annotations

import csv
import io
from typing import Any

from peftlab.profiling.profile import Memory, Profile
from peftlab.reports.analysis import Analysis
from peftlab.reports.columns import adapter_bytes, effective_parameters
from peftlab.reports.result_row import ResultRow


def render(analysis: Analysis) -> str:
    rows = [_values(analysis, row) for row in analysis.rows]
    content = io.StringIO()
    writer = csv.DictWriter(content, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


def _values(analysis: Analysis, row: ResultRow) -> dict[str, Any]:
    suite = analysis.suite
    values = {
        "task": row.combination.task,
        "method": row.combination.method,
        "quantization": row.combination.quantization,
        "protocol": suite.protocol,
        "metric": analysis.metric(row.combination.task),
        "split": suite.split,
        "learning_rate": None if row.search is None else row.search.rate,
        "learning_rate_at_edge": None if row.search is None else row.search.at_edge,
        "seeds": row.seeds,
        "done": row.states["done"],
        "diverged": row.states["diverged"],
        "failed": sum(row.states.values()) - row.states["done"] - row.states["diverged"],
        **_score_values(row),
        **_parameter_values(row),
        "adapter_bytes": adapter_bytes(row),
        "process_peak_bytes": row.peak_process_bytes,
        "unsupported": row.incompatibility,
    }
    if any(effective_parameters(other) is not None for other in analysis.rows):
        values["effective_parameters"] = effective_parameters(row)
    if any(other.stored_profile is not None for other in analysis.rows):
        state = row.stored_profile.record.state if row.stored_profile else None
        values |= {"profile": state, **_profile_values(row.profile)}
    return {key: _plain(value) for key, value in values.items()}


def _score_values(row: ResultRow) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    difference_low, difference_high = row.difference_interval or (None, None)
    return {
        "mean": None if row.score is None else row.score.mean,
        "std": None if row.score is None else row.score.std,
        "ci95_low": low,
        "ci95_high": high,
        "difference": None if row.comparison is None else row.comparison.difference.value,
        "difference_ci95_low": difference_low,
        "difference_ci95_high": difference_high,
        "p": row.p,
        "p_noninferiority": row.p_noninferiority,
        "p_equivalence": row.p_equivalence,
        "test": None if row.comparison is None else row.comparison.test,
        "tied_for_best": None if row.score is None else row.tied_for_best,
    }


def _parameter_values(row: ResultRow) -> dict[str, Any]:
    results = row.results or row.trial_results
    parameters = results[0].parameters if results else None
    return {
        f"{name}_parameters": None if parameters is None else getattr(parameters, name)
        for name in ("method", "head", "trainable", "base")
    }


def _profile_values(profile: Profile | None) -> dict[str, Any]:
    """Bytes, FLOPs per padded token, seconds."""
    times, inference = (profile.times, profile.inference) if profile else (None, None)
    quartiles = times.quartiles if times else (None, None)
    memory = {
        # The runs have a peak of the process too.
        f"{'profile_' if name == 'process_peak' else ''}{name}_bytes": profile and getattr(profile.memory, name)
        for name in Memory.model_fields
    }
    return {
        "profile_examples": profile and profile.examples,
        "profile_length": profile and profile.length,
        **memory,
        "forward_flops": profile and profile.flops.forward,
        "backward_flops": profile and profile.flops.backward,
        "step_seconds": times and times.median,
        "step_seconds_q1": quartiles[0],
        "step_seconds_q3": quartiles[1],
        "tokens_per_second": times and times.tokens_per_second,
        "matmul_flops_per_second": times and times.matmul_flops_per_second,
        "processor_fraction": times and times.processor_fraction,
        **{f"{name}_seconds": inference and getattr(inference, name) for name in ("unmerged", "merged", "base")},
        "merge_error": inference and inference.merge_error,
    }


def _plain(value: Any) -> Any:
    """Ten digits of a float, so that the summation order of another machine does not show."""
    return f"{value:.10g}" if isinstance(value, float) else "" if value is None else value
