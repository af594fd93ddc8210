"""`peftlab verify`: recompute the metrics of a suite's results from their stored predictions."""

from __future__ import annotations

from collections import Counter

from peftlab.cli.command import command
from peftlab.cli.options import SuiteFolder
from peftlab.errors import UserError


@command()
def verify(suite: SuiteFolder) -> None:
    """Recompute a suite's metrics from its stored predictions.

    Reads the data, loads no model. Exit code 1 if a result differs; a score that the result or the code lacks is
    unknown, not wrong.
    """
    from peftlab.suites.store import Store
    from peftlab.suites.verify import verify as verify_suite

    wrong = total = 0
    not_recorded: Counter[str] = Counter()
    not_computed: Counter[str] = Counter()
    for verdict in verify_suite(suite):
        total += 1
        wrong += bool(verdict.wrong)
        not_recorded.update(verdict.not_recorded)
        not_computed.update(verdict.not_computed)
        for line in verdict.wrong:
            print(f"{verdict.stored.path}: {line}")
    if not total:
        raise UserError(f"{Store(suite).folder}: no results")
    if not_recorded:
        print(f"unknown: {not_recorded.total()} scores that results were stored without: {_names(not_recorded)}")
    if not_computed:
        print(f"unknown: {not_computed.total()} stored scores that are no longer computed: {_names(not_computed)}")
    print(f"{total - wrong} of {total} results agree with their stored predictions")
    raise SystemExit(1 if wrong else 0)


def _names(scores: Counter[str]) -> str:
    """Scores of all splits, without repetition: "test rouge1" and "validation rouge1" are one."""
    return ", ".join(sorted({score.split(" ", 1)[1] for score in scores}))
