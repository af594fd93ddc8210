"""One row of a suite's tables: a combination of task, method and quantization with its runs and their statistics."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from peftlab.profiling.profile import Profile
from peftlab.recipe import Recipe
from peftlab.results.run_result import RunResult
from peftlab.statistics.bootstrap import Resampled
from peftlab.statistics.hypothesis_tests import Comparison
from peftlab.statistics.intervals import Estimate, Summary
from peftlab.suites.plan import Search
from peftlab.suites.profiles import StoredProfile
from peftlab.suites.store import Stored
from peftlab.suites.suite import Row


@dataclass(frozen=True)
class ResultRow:
    """Runs of a combination and the statistics of their scores."""

    combination: Row
    recipe: Recipe
    """Recipe of one of its runs; before there is a run, the one with the base learning rate."""
    seeds: int
    """Number of planned runs, one per seed."""
    runs: list[Stored]
    """Finished and failed runs, by seed."""
    search: Search | None
    """Learning-rate search; None if the combination is incompatible."""
    incompatibility: str | None
    """Why validation rejects the combination; None if it does not."""
    score: Summary | None = None
    resampled: Resampled | None = None
    """None if the predictions hold no per-example statistics of the metric."""
    estimate: Estimate | None = None
    score_range: tuple[float, float] = (-math.inf, math.inf)
    comparison: Comparison | None = None
    """Comparison with the reference; None for the reference itself."""
    degenerate_runs: int = 0
    """Runs that predict the same for every example, or score no better than the constant baseline."""
    p: float | None = None
    """p-value against "no difference to the reference", Holm-adjusted over the rows of the task."""
    p_noninferiority: float | None = None
    """p-value for "worse than the reference by less than the margin", likewise adjusted."""
    p_equivalence: float | None = None
    """p-value for "within the margin of the reference", likewise adjusted."""
    tied_for_best: bool = False
    trials: list[Stored] = field(default_factory=list)
    """Finished and failed trials of the search that sets its learning rate."""
    other_environments: tuple[str, ...] = ()
    """Environments of runs and trials that differ from the most common one of the task."""
    stored_profile: StoredProfile | None = None
    """None until the combination has been profiled."""
    profile_environment: str | None = None
    """Environment of the profile, if it differs from the most common one of the task."""

    @property
    def sign(self) -> int:
        """-1 for a metric that is minimized, else 1."""
        return -1 if self.recipe.task.lower_is_better else 1

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean score, clipped to the metric's range.

        None if the estimated variance is 0: neither seeds nor resampled examples changed the score.
        """
        if self.estimate is None or not self.estimate.standard_error:
            return None
        low, high = self.estimate.interval()
        return max(low, self.score_range[0]), min(high, self.score_range[1])

    @property
    def difference_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the difference to the reference, clipped to possible differences."""
        if self.comparison is None:
            return None
        low, high = self.comparison.difference.interval()
        return max(low, -self.max_difference), min(high, self.max_difference)

    @property
    def max_difference(self) -> float:
        """Largest possible difference of two scores of the metric."""
        return self.score_range[1] - self.score_range[0]

    @property
    def all_trials_failed(self) -> bool:
        """True if no learning rate gave a score, so that there will be no runs."""
        return self.search is not None and self.search.all_trials_failed

    @property
    def results(self) -> list[RunResult]:
        """Results of the finished runs."""
        return [stored.record.result for stored in self.runs if stored.record.result is not None]

    @property
    def trial_results(self) -> list[RunResult]:
        """Results of the finished trials that use the quantization of this row."""
        results = [
            stored.record.result for stored in self.trials if stored.recipe.quantization == self.recipe.quantization
        ]
        return [result for result in results if result is not None]

    @property
    def states(self) -> Counter[str]:
        """Number of runs by final state."""
        return Counter(stored.record.state for stored in self.runs)

    @property
    def profile(self) -> Profile | None:
        """Memory, FLOPs and times of a training step, if profiling succeeded."""
        return None if self.stored_profile is None else self.stored_profile.record.profile

    @property
    def peak_process_bytes(self) -> float | None:
        """Median over the finished runs of the peak resident memory of the process."""
        peaks = [stored.record.peak_rss_bytes for stored in self.runs if stored.record.result is not None]
        measured = [peak for peak in peaks if peak is not None]
        return median(measured) if measured else None
