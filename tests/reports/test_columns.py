"""Columns of the memory and compute tables, which are filled from profiles."""

import json
import re
import shutil
from pathlib import Path

import pytest

from peftlab.reports.analysis import read_analysis
from peftlab.suites.profiles import FOLDER as PROFILES
from tests.reports.example_suite import markdown_of, report_of, table_rows

LORA = ("LoRA", "none (fp32)")


def memory_rows(folder: Path) -> dict[tuple[str, str], list[str]]:
    return table_rows(markdown_of(read_analysis(folder)).split("### Memory")[1])


def compute_rows(folder: Path) -> dict[tuple[str, str], list[str]]:
    return table_rows(markdown_of(read_analysis(folder)).split("### FLOPs and times")[1])


def test_memory_is_shown_by_tensor_group_in_mebibytes(profiled_folder: Path) -> None:
    rows = memory_rows(profiled_folder)
    groups = ["40.00", "0.50", "2.00", "2.00", "4.00", "10.00", "3.00"]
    assert rows[LORA] == [*groups, "60.00", "50.00"]
    assert rows["LoRA", "NF4"] == [*groups, "59.00", "50.00"]
    assert rows["full fine-tuning", "NF4"] == ["–"] * 9  # incompatible
    assert "over a batch of 2 x 128 tokens" in markdown_of(read_analysis(profiled_folder))


def test_flops_are_counts_and_times_are_relative_to_the_reference(profiled_folder: Path) -> None:
    rows = compute_rows(profiled_folder)
    flops = ["20.00", "19.00", "1.95"]
    assert rows["full fine-tuning", "none (fp32)"] == [
        *flops, "1.00 (0.90 to 1.20)", "1.00", "40.00 %", "1.50", "–", "0.67", "–"
    ]  # fmt: skip
    assert rows[LORA] == [*flops, "0.60 (0.54 to 0.72)", "1.67", "40.00 %", "1.50", "1.00", "0.67", "1.5e-06"]
    assert rows["LoRA", "NF4"][3:5] == ["0.80 (0.72 to 0.96)", "1.25"]


def test_a_slower_machine_does_not_make_a_method_slower(profiled_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(profiled_folder, tmp_path / "example"))
    (path,) = (copy / PROFILES).glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    times = values["profile"]["times"]
    times |= {"median": 2 * times["median"], "quartiles": [2 * bound for bound in times["quartiles"]]}
    times |= {key: times[key] / 2 for key in ("matmul_flops_per_second", "tokens_per_second")}
    path.write_text(json.dumps(values))
    assert compute_rows(copy)[LORA] == compute_rows(profiled_folder)[LORA]


def test_a_failed_profile_is_a_row_of_dashes_with_the_reason(profiled_folder: Path) -> None:
    text = markdown_of(read_analysis(profiled_folder))
    (letter,) = re.findall(r"- (\w): not profiled: failed: no such layer", text)
    assert f"| BitFit [{letter}] | none (fp32) |{' – |' * 9}" in text


@pytest.mark.parametrize(
    ("key", "value", "compared"),
    [
        ("environment.hardware.processor", "another", False),
        ("environment.hardware.threads", 2, False),
        ("environment.code.commit", "d" * 40, True),
        ("examples", 4, False),
    ],
)
def test_times_are_compared_on_the_same_machine_and_batch_and_other_environments_have_a_footnote(
    profiled_folder: Path, tmp_path: Path, key: str, value: object, compared: bool
) -> None:
    copy = Path(shutil.copytree(profiled_folder, tmp_path / "example"))
    (path,) = (copy / PROFILES).glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    *parents, last = key.split(".")
    inner = values["profile"]
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(values))
    cells = compute_rows(copy)[LORA]
    assert (cells[3] != "–", cells[4] != "–", cells[8] != "–") == (compared,) * 3
    assert cells[:3] == ["20.00", "19.00", "1.95"]
    assert cells[6] == "1.50"
    text = markdown_of(read_analysis(copy))
    letters = re.findall(r"- (\w): profiled in a different environment", text)
    assert len(letters) == (key != "examples")
    for letter in letters:
        assert f"| LoRA [{letter}] | none (fp32) | 40.00" in text
    assert "| full fine-tuning | none (fp32) | 40.00" in text


@pytest.mark.parametrize("fraction", [0.4, 0.97])
def test_times_that_other_processes_disturbed_have_a_footnote(
    profiled_folder: Path, tmp_path: Path, fraction: float
) -> None:
    copy = Path(shutil.copytree(profiled_folder, tmp_path / "example"))
    (path,) = (copy / PROFILES).glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    values["profile"]["times"]["processor_fraction"] = fraction
    path.write_text(json.dumps(values))
    note = r"- \w: other processes used the processor for (.*) of the timed steps"
    assert re.findall(note, markdown_of(read_analysis(copy))) == (["60%"] if fraction == 0.4 else [])


def test_without_profiles_there_are_no_profile_tables(suite_folder: Path, profiled_folder: Path) -> None:
    plain, profiled = report_of(read_analysis(suite_folder)), report_of(read_analysis(profiled_folder))
    assert "### Memory" not in plain["table.md"]
    assert profiled["table.md"].split("### Memory")[0].strip() in plain["table.md"]
    assert profiled["table.tex"].count("{tabular}") == plain["table.tex"].count("{tabular}") + 4
