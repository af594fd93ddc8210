"""`peftlab verify`: recompute the metrics of a suite's results from their stored predictions."""

from __future__ import annotations

from peftlab.cli.command import command
from peftlab.cli.options import SuiteFolder
from peftlab.errors import UserError


@command()
def verify(suite: SuiteFolder) -> None:
    """Recompute a suite's metrics from its stored predictions.

    Reads the data, loads no model. Exit code 1 if a result differs.
    """
    from peftlab.suites.store import Store
    from peftlab.suites.verify import verify as verify_suite

    wrong = total = 0
    for verdict in verify_suite(suite):
        total += 1
        wrong += bool(verdict.wrong)
        for line in verdict.wrong:
            print(f"{verdict.stored.path}: {line}")
    if not total:
        raise UserError(f"{Store(suite).folder}: no results")
    print(f"{total - wrong} of {total} results agree with their stored predictions")
    raise SystemExit(1 if wrong else 0)
