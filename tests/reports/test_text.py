"""Paragraphs that explain the tables."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from peftlab.reports import text
from peftlab.reports.analysis import Analysis, read_analysis
from peftlab.reports.result_row import ResultRow
from peftlab.reports.setup import describe_splits, describe_training
from peftlab.training.settings import Training
from tests.reports.example_suite import SUITE, changed, markdown_of


def with_seed_variance(analysis: Analysis, variance: float) -> Analysis:
    """The analysis with this variance between seeds, of one degree of freedom, in every difference."""

    def change(row: ResultRow) -> ResultRow:
        if row.comparison is None:
            return row
        difference = replace(row.comparison.difference, seed_variance=variance, seed_degrees=1.0)
        return replace(row, comparison=replace(row.comparison, difference=difference))

    return replace(analysis, rows=[change(row) for row in analysis.rows])


def test_no_difference_is_called_detectable_that_the_metric_cannot_have(suite_folder: Path) -> None:
    """With two seeds the strictest test can need an F1 that is better by 15."""
    analysis = read_analysis(suite_folder)
    (paragraph,) = text.explain_power(analysis, "addresses")
    (differences,) = re.findall(r"difference of (0\.\d+) in .* of (0\.\d+) in", paragraph)
    assert all(float(number) < 0.4 for number in differences)
    wide = with_seed_variance(analysis, 1.0)
    assert text.explain_power(wide, "addresses")[0].startswith("Power: none.")
    mixed = replace(wide, rows=[*wide.rows[:3], analysis.rows[4]])
    assert "in the row with the least variance and of no possible size" in text.explain_power(mixed, "addresses")[0]


def test_a_margin_that_the_suite_cannot_resolve_is_called_too_narrow(suite_folder: Path, tmp_path: Path) -> None:
    assert "too narrow" not in markdown_of(read_analysis(suite_folder))  # 0.1
    copy = Path(shutil.copytree(suite_folder, tmp_path / "example"))
    (copy / "suite.yaml").write_text(SUITE.replace("margin: 0.1", "margin: 0.001"))
    (margin,) = re.findall(r"from a margin of (\S+) on: 0.001 is too narrow", markdown_of(read_analysis(copy)))
    assert 0.001 < float(margin) < 0.1


def test_readers_learn_that_intervals_are_not_adjusted(suite_folder: Path) -> None:
    assert "Intervals are not adjusted" in markdown_of(read_analysis(suite_folder))


def test_a_missing_interval_is_explained(suite_folder: Path) -> None:
    analysis = read_analysis(suite_folder)
    row = analysis.rows[2]
    assert row.estimate is not None
    constant = replace(row, estimate=replace(row.estimate, seed_variance=0.0, example_variance=0.0))
    explanation = "A row has no interval if"
    paragraphs = text.explain_results(replace(analysis, rows=[*analysis.rows, constant]), "addresses")
    assert explanation in " ".join(paragraphs)
    assert explanation not in markdown_of(analysis)


def test_what_preprocessing_dropped_is_summed_over_the_splits(suite_folder: Path, tmp_path: Path) -> None:
    splits = {
        split: {"examples": count, "tokens": 9, "dropped": {"lost_words": count, "cut_sentences": 0}}
        for split, count in (("train", 20), ("validation", 3), ("test", 4))
    }
    analysis = read_analysis(changed(suite_folder, tmp_path, {"splits": splits}))
    (result,) = (result for row in analysis.rows for result in row.results if len(result.splits) == 3)
    assert describe_splits(result) == "20 train, 3 validation, 4 test examples (27 lost words)"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "AdamW (betas 0.9 and 0.999, epsilon 1e-08, weight decay 0.01 on matrices), a linear schedule after"),
        ({"optimizer": "adafactor"}, "Adafactor (minimum scale 1, weight decay 0.01 on matrices), a linear schedule"),
        (
            {"optimizer": "muon"},
            "Muon (momentum 0.95, update scale match_adamw; AdamW outside of hidden matrices, betas",
        ),
        ({"optimizer": "adamw_8bit", "schedule": "wsd"}, "8-bit AdamW (betas 0.9 and 0.999, epsilon 1e-08, weight de"),
        ({"minimum_learning_rate": 0.1}, "a linear schedule down to 10 % of the peak after a warmup over 6 % of"),
    ],
)
def test_the_setup_names_optimizer_and_schedule(settings: dict[str, object], says: str) -> None:
    assert says in describe_training(Training.model_validate(settings))
