"""Markdown report of a suite: numbers of the results, footnotes, sections."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from peftlab.reports.analysis import read_analysis
from peftlab.suites.store import Store
from tests.reports.example_suite import SUITE, changed, markdown_of, report_of, table_rows


def test_a_row_has_the_mean_std_interval_difference_and_tests_of_its_runs(suite_folder: Path) -> None:
    rows = table_rows(markdown_of(read_analysis(suite_folder)))
    runs = [s.record.result for s in Store(suite_folder).records().values() if s.recipe.name == "addresses-lora-none"]
    scores = [run.metrics["test"]["entity_f1"] for run in runs if run is not None and "test" in run.metrics]
    assert len(scores) == 4
    trainable, fraction, size, n, score, interval, difference, p, noninferiority = rows["LoRA", "none (fp32)"]
    assert (trainable, fraction, size, n) == ("1,010", "1.00 %", "4.0 KiB", "4")
    assert score == f"**{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}**"
    assert float(interval.split(" to ")[0]) < np.mean(scores) < float(interval.split(" to ")[1])
    assert float(p) > 0.05
    assert noninferiority == "< 0.001" or float(noninferiority) < 0.05
    full = rows["full fine-tuning", "none (fp32)"]
    assert full[6:] == ["–"] * 3  # the reference is compared with nothing
    gap = np.mean(scores) - float(full[4].strip("*").split()[0])
    assert float(difference.split()[0]) == pytest.approx(gap, abs=1.1e-4)


def test_a_worse_method_is_not_bold_and_its_diverged_run_is_counted_with_its_reason(suite_folder: Path) -> None:
    text = markdown_of(read_analysis(suite_folder))
    row = table_rows(text)["BitFit", "none (fp32)"]
    assert row[3] == "3 of 4, 1 diverged"
    assert not row[4].startswith("**")
    assert row[7] == "< 0.001" or float(row[7]) < 0.05
    assert "1 of 4 runs diverged: the loss is nan" in text


def test_an_incompatible_combination_is_a_row_of_dashes_with_the_reason(suite_folder: Path) -> None:
    text = markdown_of(read_analysis(suite_folder))
    assert table_rows(text)["full fine-tuning", "NF4"] == ["–"] * 9
    assert re.search(r"- \w: unsupported: .*full fine-tuning", text)


def test_times_are_shown_only_if_nothing_else_used_the_machine(suite_folder: Path, tmp_path: Path) -> None:
    assert "7,777" not in markdown_of(read_analysis(suite_folder))
    exclusive = Path(shutil.copytree(suite_folder, tmp_path / "example"))
    (exclusive / "suite.yaml").write_text(SUITE + "own_machine: true\n")
    assert "7,777" in markdown_of(read_analysis(exclusive))


def test_all_learning_rates_are_shown_and_the_selected_one_is_bold(suite_folder: Path) -> None:
    text = markdown_of(read_analysis(suite_folder)).split("### Learning rates")[1]
    row = r"\| LoRA \| none \(fp32\) \| "
    assert re.search(row + r"0\.000333 \| 0\.\d+ \| not selected \|", text)
    assert re.search(row + r"\*\*0\.001\*\* \| \*\*0\.\d+\*\* \| selected \|", text)
    assert re.search(row + r"0\.003 \| 0\.\d+ \| not selected \|", text)


@pytest.mark.parametrize(
    ("key", "value", "environment"),
    [
        ("environment.code.commit", "d" * 40, "peftlab ddddddd"),
        ("environment.hardware.threads", 2, "p, 2 threads"),
        ("environment.hardware.processor", "another", "another, 1 thread"),
        ("environment.libraries", {"torch": "2.14.0"}, "torch 2.14.0"),
    ],
)
def test_results_from_different_code_or_hardware_have_a_footnote(
    suite_folder: Path, tmp_path: Path, key: str, value: object, environment: str
) -> None:
    text = markdown_of(read_analysis(changed(suite_folder, tmp_path, {key: value})))
    ((letter, note),) = re.findall(r"- (\w): some runs or trials used a different environment: (.*)", text)
    assert environment in note
    assert f"| LoRA [{letter}] | none (fp32) |" in text
    assert "| full fine-tuning | none (fp32) |" in text


def test_parameters_left_by_pruning_are_shown_if_a_method_reports_them(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"method_stats": {"effective_parameters": 600}})
    text = report_of(read_analysis(copy))["table.md"]
    rows = table_rows(text.split("### Cost")[1])
    assert "| method | precision | method parameters | head parameters | effective parameters |" in text
    assert rows["LoRA", "none (fp32)"][:3] == ["1,000", "10", "610"]
    assert rows["BitFit", "none (fp32)"][:3] == ["1,000", "10", "–"]
    assert "effective parameters" not in report_of(read_analysis(suite_folder))["table.md"]


def test_every_run_is_listed_with_links_to_its_files(suite_folder: Path) -> None:
    text = markdown_of(read_analysis(suite_folder)).split("## Runs")[1]
    links = set(re.findall(r"\]\(\.\./(results/\S+?\.json)\)", text))
    assert links == {f"results/{path.name}" for path in (suite_folder / "results").glob("*.json")}
