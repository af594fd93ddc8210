"""The plan of a suite: which runs there are, given the validation scores of those that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftlab.recipe import Recipe
from peftlab.suites.store import Stored, validation_scores
from peftlab.suites.suite import Row, Suite, rounded_rate

Scores = Mapping[str, float | None]
"""Validation score by recipe digest, larger is better; None for a run that ended without one."""


@dataclass(frozen=True)
class Search:
    """The learning-rate trials of one row."""

    row: Row
    trials: list[Recipe]
    """By rising learning rate, extensions included."""
    scores: list[float | None]
    """Validation scores of `trials`, larger is better; None where there is none, or none yet."""
    missing: list[Recipe]
    """Trials that have not ended."""
    rate: float | None
    """The best learning rate; None while trials are missing, or if no trial has a score."""
    extended: bool
    """The best rate was at the edge of the grid, which was extended."""
    at_edge: bool
    """The best rate is at the edge of the grid, after the extensions."""

    @property
    def all_trials_failed(self) -> bool:
        """True if all trials have ended, none with a score: the row gets no runs."""
        return bool(self.trials) and not self.missing and self.rate is None


@dataclass(frozen=True)
class Plan:
    """The runs of a suite, as far as the results so far determine them."""

    searches: dict[Row, Search]
    chosen_over: dict[Row, Row]
    """For each row, the row whose trials choose its learning rate."""
    cells: dict[Row, list[Recipe]]
    """By row, one recipe per seed; empty while the learning rate is open."""
    refused: dict[Row, str]
    """Rows that validation refuses, with the reason."""

    @property
    def recipes(self) -> list[Recipe]:
        """All known runs: trials, then the rows seed by seed, so that few seeds of the full table come first."""
        trials = [trial for search in self.searches.values() for trial in search.trials]
        longest = max((len(cells) for cells in self.cells.values()), default=0)
        return trials + [cells[i] for i in range(longest) for cells in self.cells.values() if i < len(cells)]


def make_plan(suite: Suite, scores: Scores) -> Plan:
    """The plan of `suite`, given the validation scores of the trials that have ended."""
    searches: dict[Row, Search] = {}
    chosen_over: dict[Row, Row] = {}
    cells: dict[Row, list[Recipe]] = {}
    refused: dict[Row, str] = {}
    for row in suite.rows():
        example = suite.example(row)
        reason = example.incompatible_with(example.model.known_architecture(), sharded=suite.placement.sharded)
        if reason is not None:
            refused[row] = reason
            continue
        siblings = (other for other in searches if (other.task, other.method) == (row.task, row.method))
        source = chosen_over[row] = row if suite.trials.per_quantization else next(siblings, row)
        if source not in searches:
            searches[source] = _search(suite, source, scores)
        rate = searches[source].rate
        cells[row] = [
            suite.recipe(row, learning_rate=rate, seed=seed, trial=False)
            for seed in (suite.seeds if rate is not None else [])
            if rate is not None
        ]
    return Plan(searches, chosen_over, cells, refused)


def current_plan(suite: Suite, records: Mapping[str, Stored]) -> Plan:
    """The plan of `suite`, given its stored records."""
    return make_plan(suite, validation_scores(records))


def _search(suite: Suite, row: Row, scores: Scores) -> Search:
    rates = suite.trials.rates(suite.base_learning_rate(row))
    if len(rates) == 1:
        return Search(row, [], [], [], rates[0], extended=False, at_edge=False)
    extensions = 0
    while True:
        trials = {rate: suite.recipe(row, learning_rate=rate, seed=suite.trials.seed, trial=True) for rate in rates}
        missing = [trial for trial in trials.values() if trial.digest not in scores]
        by_rate = {rate: scores.get(trial.digest) for rate, trial in trials.items()}
        best = _best(by_rate) if not missing else None
        at_edge = best is not None and best in (min(rates), max(rates))
        if best is None or not at_edge or extensions == suite.trials.extensions:
            break
        factor = suite.trials.factor
        beyond = rounded_rate(best / factor if best == min(rates) else best * factor)
        if beyond in rates:  # already at the largest or smallest rate that a recipe allows
            break
        extensions += 1
        rates.append(beyond)
    order = sorted(rates)
    return Search(
        row,
        [trials[rate] for rate in order],
        [by_rate[rate] for rate in order],
        missing,
        best,
        extended=extensions > 0,
        at_edge=at_edge,
    )


def _best(scores: Mapping[float, float | None]) -> float | None:
    """The learning rate with the best score; of equal scores, the one tried first."""
    defined = {rate: score for rate, score in scores.items() if score is not None}
    return max(defined, key=lambda rate: defined[rate]) if defined else None
