"""Footnotes of a suite's tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from peftlab.profiling.profile import MIB
from peftlab.reports.result_row import ResultRow

UNDISTURBED = 0.95
"""Fraction of the timed steps that a process must have had the processor for, to be timed without a note."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Notes:
    """Footnotes, lettered in the order of their first use."""

    texts: list[str] = field(default_factory=list)

    def marks(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Letters of the given footnotes; new ones are added."""
        letters = []
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
            letters.append(self.letter(self.texts.index(text)))
        return tuple(letters)

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """Letter and text of every footnote."""
        return tuple((self.letter(i), text) for i, text in enumerate(self.texts))

    @staticmethod
    def letter(number: int) -> str:
        """
        >>> [Notes.letter(number) for number in (0, 25, 26, 702)]
        ['a', 'z', 'aa', 'aaa']
        """
        more, last = divmod(number, len(LETTERS))
        return (Notes.letter(more - 1) if more else "") + LETTERS[last]


def result_notes(row: ResultRow) -> list[str]:
    """Footnotes on a row's runs: deviations from the paper, failed or degenerate runs, other environments."""
    notes = []
    if row.incompatibility is not None:
        notes.append(f"unsupported: {row.incompatibility}")
    if row.recipe.method.fidelity:
        notes.append(f"{row.recipe.method.title}: {row.recipe.method.fidelity}")
    results = [stored.record.result for stored in (*row.runs, *row.trials) if stored.record.result is not None]
    reach = next((result.reach for result in results if result.reach is not None), None)
    if reach is not None:
        notes += reach.notes(row.recipe.method.title, row.recipe.quantization.title)
    for state, count in sorted(row.states.items()):
        if state != "done":
            reasons = sorted({stored.record.reason or "" for stored in row.runs if stored.record.state == state})
            notes.append(f"{count} of {row.seeds} runs {state}: {'; '.join(reasons)}")
    undefined = row.states["done"] - (0 if row.score is None else row.score.n)
    if undefined:
        notes.append(f"{row.recipe.task.selection} is undefined for {undefined} finished runs")
    if row.degenerate_runs:
        notes.append(
            f"{row.degenerate_runs} of {row.seeds} runs are degenerate: no better than the constant baseline, or the "
            "same prediction for every example"
        )
    if row.all_trials_failed:
        reasons = sorted({f"{s.record.state}: {s.record.reason}" for s in row.trials if s.record.state != "done"})
        notes.append(": ".join(["no learning rate gave a score", *(["; ".join(reasons)] if reasons else [])]))
    if row.search is not None and row.search.at_edge:
        extended = ", even after extending it" if row.search.extended else ""
        notes.append(f"the best learning rate is at the edge of the grid{extended}")
    return notes + [f"some runs or trials used a different environment: {name}" for name in row.other_environments]


def profile_notes(row: ResultRow) -> list[str]:
    """Footnotes on a row's profile: failure, tensors left over, disturbed timing, environment."""
    if row.stored_profile is None:
        return []
    record, notes = row.stored_profile.record, []
    if row.profile is None:
        notes.append(f"not profiled: {record.state}: {record.reason}")
    elif row.profile.memory.retained:
        extra = row.profile.memory.retained / MIB
        notes.append(f"{extra:,.2f} MiB in addition to the gradients are still allocated after the backward pass")
    times = row.profile.times if row.profile else None
    if times is not None and times.processor_fraction is not None and times.processor_fraction < UNDISTURBED:
        notes.append(f"other processes used the processor for {1 - times.processor_fraction:.0%} of the timed steps")
    if row.profile_environment is not None:
        notes.append(f"profiled in a different environment: {row.profile_environment}")
    return notes
