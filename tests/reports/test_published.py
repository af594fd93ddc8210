"""Published results: compared with ours, or with dashes until there are results."""

import shutil
from pathlib import Path

import pytest

from peftlab.reports import html, latex
from peftlab.reports.analysis import Analysis, read_analysis
from peftlab.reports.published import published
from peftlab.reports.sections import build_document
from tests.reports.example_suite import SUITE, markdown_of, row_of, table_rows

LORA = "addresses-lora-none"


def test_a_published_result_is_compared_with_ours(suite_folder: Path) -> None:
    rows = table_rows(markdown_of(read_analysis(suite_folder)).split("### Published results")[1])
    value, ours, tolerance, agrees, source = rows["LoRA", "none (fp32)"]
    assert (value, tolerance, agrees, source) == ("0.8000", "0.1000", "yes", "A paper, table 1")
    assert abs(float(ours) - 0.8) < 0.1


def with_published(suite_folder: Path, copy: Path, row: str) -> Analysis:
    """The example suite with another published result."""
    shutil.copytree(suite_folder, copy)
    (copy / "suite.yaml").write_text(SUITE.replace('value: 0.8, tolerance: 0.1, source: "A paper, table 1"', row))
    return read_analysis(copy)


def test_a_difference_of_exactly_the_tolerance_agrees_and_a_bar_in_a_source_is_escaped(
    suite_folder: Path, tmp_path: Path
) -> None:
    score = row_of(read_analysis(suite_folder), LORA).score
    assert score is not None
    row = f'value: {score.mean + 0.3}, tolerance: 0.3, source: "A | B"'
    analysis = with_published(suite_folder, tmp_path / "example", row)
    assert published(analysis, "addresses")[0].agrees == "yes"
    assert "| 0.3000 | yes | A \\| B |" in markdown_of(analysis)


def test_before_there_is_a_result_there_are_dashes(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE + "name: mine\n")
    analysis = read_analysis(tmp_path)
    text = markdown_of(analysis)
    assert "16 of 16 runs are missing." in text
    rows = table_rows(text.split("### Published results")[1])
    assert rows["LoRA", "none"] == ["0.8000", "–", "0.1000", "–", "A paper, table 1"]
    document = build_document(analysis)
    assert "LoRA & none & 0.8000 & -- & 0.1000 & -- & A paper, table 1" in latex.render(document)
    cells = [line for line in html.render(document, root="..").splitlines() if line.startswith("<td")]
    assert [cell.split(">")[1].split("<")[0] for cell in cells[:4]] == ["LoRA", "none", "0.8000", "–"]


def test_ours_agrees_within_1_96_standard_errors_if_that_is_more_than_the_tolerance(
    suite_folder: Path, tmp_path: Path
) -> None:
    analysis = with_published(suite_folder, tmp_path / "example", 'value: 0.8, tolerance: 1e-6, source: "A"')
    (row,) = published(analysis, "addresses")
    score = row_of(analysis, LORA).score
    assert score is not None
    assert score.std is not None
    assert float(row.tolerance) == pytest.approx(1.96 * score.std / 2, abs=1e-4)  # four seeds
    assert row.agrees == ("yes" if abs(score.mean - 0.8) <= float(row.tolerance) else "no")
