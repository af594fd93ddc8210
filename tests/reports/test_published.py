"""Rows of other papers: beside ours, or beside dashes as long as there is nothing to show."""

import shutil
from pathlib import Path

import pytest

from peftlab.reports.analysis import Analysis
from peftlab.reports.html import page
from peftlab.reports.latex import document
from peftlab.reports.markdown import markdown, read_analysis
from peftlab.reports.published import published
from tests.reports.made_up import SUITE, table_rows


def test_a_published_row_stands_beside_ours(suite_folder: Path) -> None:
    rows = table_rows(markdown(read_analysis(suite_folder)).split("### Published")[1])
    value, ours, tolerance, agrees, source = rows["LoRA", "unquantised"]
    assert (value, tolerance, agrees, source) == ("0.8000", "0.1000", "yes", "A paper, table 1")
    assert abs(float(ours) - 0.8) < 0.1


def with_row(suite_folder: Path, folder: Path, row: str) -> Analysis:
    """The made-up suite with another published row."""
    shutil.copytree(suite_folder, folder)
    (folder / "suite.yaml").write_text(SUITE.replace('value: 0.8, tolerance: 0.1, source: "A paper, table 1"', row))
    return read_analysis(folder)


def test_a_difference_of_just_the_tolerance_agrees_and_a_bar_in_a_source_ends_no_cell(
    suite_folder: Path, tmp_path: Path
) -> None:
    score = next(line.score for line in read_analysis(suite_folder).lines if line.row.name == "addresses-lora-none")
    assert score is not None
    row = f'value: {score.mean + 0.3}, tolerance: 0.3, source: "A | B"'
    findings = with_row(suite_folder, tmp_path / "made-up", row)
    assert published(findings, "addresses")[0].agrees == "yes"
    assert "| 0.3000 | yes | A \\| B |" in markdown(findings)


def test_before_there_is_a_result_there_are_dashes(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE + "name: mine\n")
    findings = read_analysis(tmp_path)
    text = markdown(findings)
    assert "16 of 16 runs are still to come." in text
    rows = table_rows(text.split("### Published")[1])
    assert rows["LoRA", "unquantised"] == ["0.8000", "–", "0.1000", "–", "A paper, table 1"]
    assert "LoRA & unquantised & 0.8000 & -- & 0.1000 & -- & A paper, table 1" in document(findings)
    assert "<td>LoRA</td><td>unquantised</td><td>0.8000</td><td>–</td>" in page(findings)


def test_ours_agrees_within_what_its_seeds_leave_open_where_that_is_more(suite_folder: Path, tmp_path: Path) -> None:
    findings = with_row(suite_folder, tmp_path / "made-up", 'value: 0.8, tolerance: 1e-6, source: "A"')
    (beside,) = published(findings, "addresses")
    score = next(line.score for line in findings.lines if line.row.name == "addresses-lora-none")
    assert score is not None
    assert score.std is not None
    assert float(beside.tolerance) == pytest.approx(1.96 * score.std / 2, abs=1e-4)  # of four seeds
    assert beside.agrees == ("yes" if abs(score.mean - 0.8) <= float(beside.tolerance) else "no")
