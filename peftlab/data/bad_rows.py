"""Bad rows: all of them found before anything trains, then said, or left out and counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from peftlab.data.examples import Row
from peftlab.errors import UserError

OnBadRow = Literal["error", "skip"]
MOST_SHOWN = 5
MOST_SKIPPED = 0.1  # of a split's rows: beyond it something is wrong with more than rows


def apply_bad_row_policy(bad: Sequence[Row], of: int, what: str, on_bad_row: OnBadRow) -> dict[str, int]:
    """How many of `of` rows are left out, by reason. Raises UserError with the first of them if that is not wanted."""
    if not bad:
        return {}
    if on_bad_row == "error":
        raise UserError(_list(bad, of))
    if len(bad) > MOST_SKIPPED * of:
        raise UserError(
            f"{_list(bad, of)}\ndata.on_bad_row: {len(bad)} of {of} rows of {what} are bad, and at most "
            f"{MOST_SKIPPED:.0%} are skipped"
        )
    return dict(Counter(reason(row.fault or "") for row in bad))


def reason(fault: str) -> str:
    """What comes before the details, the same for many rows.

    >>> reason("labels: 5 tags for 6 tokens"), reason("600 tokens, but at most 512 fit; set task.truncate")
    ('labels', 'N tokens, but at most N fit')
    """
    return re.sub(r"\d+", "N", re.split(r"[:;] ", fault, maxsplit=1)[0])


def _list(bad: Sequence[Row], of: int) -> str:
    """The first bad row of each reason, then the first rows, up to MOST_SHOWN, in order."""
    first = {reason(row.fault or ""): number for number, row in reversed(list(enumerate(bad)))}
    shown = sorted([*sorted(first.values()), *sorted(set(range(len(bad))) - set(first.values()))][:MOST_SHOWN])
    lines = [f"{bad[number].where}: {bad[number].fault}" for number in shown]
    if len(bad) > len(shown):
        lines.append(f"and {len(bad) - len(shown)} more bad rows, of {of} rows")
    return "\n".join(lines)
