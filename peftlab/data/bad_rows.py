"""Policy for bad rows: all of them are reported before training starts, or skipped and counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from peftlab.data.examples import Row
from peftlab.errors import UserError

OnBadRow = Literal["error", "skip"]
MOST_SHOWN = 5
MOST_SKIPPED = 0.1  # fraction of a split's rows; above it the file or the recipe is wrong, not single rows


def apply_bad_row_policy(bad: Sequence[Row], total: int, source: str, on_bad_row: OnBadRow) -> dict[str, int]:
    """Number of skipped rows by reason. Raises UserError if rows are not to be skipped, or too many of `total` are bad.

    `source` names the rows in the message, e.g. "the train split of data.jsonl".
    """
    if not bad:
        return {}
    if on_bad_row == "error":
        raise UserError(_report(bad, total))
    if len(bad) > MOST_SKIPPED * total:
        raise UserError(
            f"{_report(bad, total)}\ndata.on_bad_row: {len(bad)} of {total} rows of {source} are bad, and at most "
            f"{MOST_SKIPPED:.0%} are skipped"
        )
    return dict(Counter(reason(row.fault or "") for row in bad))


def reason(fault: str) -> str:
    """The part of a fault that is the same for many rows.

    >>> reason("labels: 5 tags for 6 tokens"), reason("600 tokens, but at most 512 fit; set task.truncate")
    ('labels', 'N tokens, but at most N fit')
    """
    return re.sub(r"\d+", "N", re.split(r"[:;] ", fault, maxsplit=1)[0])


def _report(bad: Sequence[Row], total: int) -> str:
    """Up to `MOST_SHOWN` faults in order, each once with its first row: the first of each reason, then the others."""
    counts = Counter(row.fault or "" for row in bad)
    first_rows = {fault: number for number, fault in reversed(list(enumerate(row.fault or "" for row in bad)))}
    distinct = sorted(first_rows.values())
    first = {reason(bad[number].fault or ""): number for number in reversed(distinct)}
    shown = sorted([*sorted(first.values()), *(n for n in distinct if n not in first.values())][:MOST_SHOWN])
    lines = []
    for number in shown:
        others = counts[bad[number].fault or ""] - 1
        also = f" (and {others} more {'row' if others == 1 else 'rows'}, of {total})" if others else ""
        lines.append(f"{bad[number].where}: {bad[number].fault}{also}")
    rest = len(bad) - sum(counts[bad[number].fault or ""] for number in shown)
    if rest:
        lines.append(f"and {rest} more bad rows, of {total} rows")
    return "\n".join(lines)
