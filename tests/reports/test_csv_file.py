"""CSV of a suite: one row per combination, unrounded."""

import csv
import io
from pathlib import Path

import pytest

from peftlab.profiling.profile import MIB
from peftlab.reports import csv_file
from peftlab.reports.analysis import Analysis, read_analysis
from tests.reports.example_suite import changed


def rows_of(analysis: Analysis) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_file.render(analysis))))


def test_every_combination_is_a_row_with_unrounded_values(suite_folder: Path) -> None:
    analysis = read_analysis(suite_folder)
    rows = rows_of(analysis)
    assert [(row["method"], row["quantization"]) for row in rows] == [
        ("full", "none"), ("full", "nf4"), ("lora", "none"), ("lora", "nf4"), ("bitfit", "none")
    ]  # fmt: skip
    lora = analysis.rows[2]
    assert lora.score is not None
    assert float(rows[2]["mean"]) == pytest.approx(lora.score.mean, rel=1e-9)
    assert rows[1]["mean"] == ""


def test_columns_have_the_usual_names(suite_folder: Path) -> None:
    names = rows_of(read_analysis(suite_folder))[0].keys()
    assert {"mean", "std", "ci95_low", "ci95_high", "failed", "p_noninferiority"} <= names


def test_effective_parameters_are_a_column_if_a_method_reports_them(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"method_stats": {"effective_parameters": 600}})
    assert [row["effective_parameters"] for row in rows_of(read_analysis(copy))] == ["", "", "610", "", ""]
    assert "effective_parameters" not in rows_of(read_analysis(suite_folder))[0]


def test_profiles_are_given_in_bytes_and_seconds(profiled_folder: Path, suite_folder: Path) -> None:
    rows = rows_of(read_analysis(profiled_folder))
    lora = rows[2]
    assert (lora["base_bytes"], lora["peak_bytes"], lora["inputs_bytes"]) == (str(40 * MIB), str(60 * MIB), "1000")
    assert (lora["step_seconds"], lora["step_seconds_q1"], lora["merged_seconds"]) == ("0.3", "0.27", "0.2")
    assert [row["profile"] for row in rows] == ["done", "", "done", "done", "failed"]
    assert rows[4]["peak_bytes"] == rows[1]["peak_bytes"] == ""
    assert (lora["process_peak_bytes"], lora["profile_process_peak_bytes"]) == ("", "7000")  # runs have none here
    assert "peak_bytes" not in rows_of(read_analysis(suite_folder))[0]
