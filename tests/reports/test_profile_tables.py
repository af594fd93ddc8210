"""The tables of memory, operations and times."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from peftlab.profiling.profile import MIB
from peftlab.reports.figures import write_figures
from peftlab.reports.markdown import markdown, read_analysis, tables
from tests.reports.made_up import table_rows


def test_memory_is_shown_by_phase_in_mebibytes(measured_folder: Path) -> None:
    text = markdown(read_analysis(measured_folder))
    rows = table_rows(text.split("### Memory")[1])
    bytes_of_step = ["40.00", "0.50", "2.00", "2.00", "4.00", "10.00", "3.00"]
    assert rows["LoRA", "unquantised"] == [*bytes_of_step, "60.00", "50.00"]
    assert rows["LoRA", "NF4"] == [*bytes_of_step, "59.00", "50.00"]
    assert rows["full fine-tuning", "NF4"] == ["–"] * 9  # refused
    assert "over a batch of 2 x 128 tokens" in text


def test_times_are_ratios_to_the_reference_and_operations_are_counts(measured_folder: Path) -> None:
    rows = table_rows(markdown(read_analysis(measured_folder)).split("### Operations and times")[1])
    operations = ["20.00", "19.00", "1.95"]
    assert rows["full fine-tuning", "unquantised"] == [
        *operations, "1.00 (0.90 to 1.20)", "1.00", "40.00 %", "1.50", "–", "0.67", "–"
    ]  # fmt: skip
    assert rows["LoRA", "unquantised"] == [
        *operations, "0.60 (0.54 to 0.72)", "1.67", "40.00 %", "1.50", "1.00", "0.67", "1.5e-06"
    ]  # fmt: skip
    assert rows["LoRA", "NF4"][3:5] == ["0.80 (0.72 to 0.96)", "1.25"]


def test_a_slower_hour_of_the_machine_makes_no_method_slower(measured_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (path,) = (folder / "profiles").glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    times = values["profile"]["times"]
    times |= {"median": 2 * times["median"], "quartiles": [2 * bound for bound in times["quartiles"]]}
    times |= {"matrix_rate": times["matrix_rate"] / 2, "tokens_per_second": times["tokens_per_second"] / 2}
    path.write_text(json.dumps(values))
    before, after = (
        table_rows(markdown(read_analysis(place)).split("### Operations and times")[1])
        for place in (measured_folder, folder)
    )
    assert after["LoRA", "unquantised"] == before["LoRA", "unquantised"]


def test_a_ledger_that_failed_is_a_dash_with_its_reason(measured_folder: Path) -> None:
    text = markdown(read_analysis(measured_folder))
    (letter,) = re.findall(r"- (\w): not measured: failed: no such layer", text)
    assert f"| BitFit [{letter}] | unquantised |{' – |' * 9}" in text


@pytest.mark.parametrize(
    ("key", "value", "compared"),
    [
        ("environment.hardware.processor", "another", False),
        ("environment.hardware.threads", 2, False),
        ("environment.code.commit", "d" * 40, True),
        ("examples", 4, False),
    ],
)
def test_times_are_compared_on_one_machine_and_batch_and_other_ground_is_marked(
    measured_folder: Path, tmp_path: Path, key: str, value: object, compared: bool
) -> None:
    copy = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (path,) = (copy / "profiles").glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    *parents, last = key.split(".")
    inner = values["profile"]
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(values))
    text = markdown(read_analysis(copy))
    cells = table_rows(text.split("### Operations and times")[1])["LoRA", "unquantised"]
    assert (cells[3] != "–", cells[4] != "–", cells[8] != "–") == (compared,) * 3
    assert cells[:3] == ["20.00", "19.00", "1.95"]
    assert cells[6] == "1.50"
    notes = re.findall(r"- (\w): measured on other ground than the runs", text)
    assert len(notes) == (key != "examples")
    for letter in notes:
        assert f"| LoRA [{letter}] | unquantised | 40.00" in text
    assert "| full fine-tuning | unquantised | 40.00" in text


@pytest.mark.parametrize("share", [0.4, 0.97])
def test_times_that_other_processes_disturbed_are_marked(measured_folder: Path, tmp_path: Path, share: float) -> None:
    copy = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (path,) = (copy / "profiles").glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    values["profile"]["times"]["processor_share"] = share
    path.write_text(json.dumps(values))
    said = re.findall(r"- \w: its times are not its own: .* for (.*) of them", markdown(read_analysis(copy)))
    assert said == (["60%"] if share == 0.4 else [])


def test_without_ledgers_nothing_is_said_of_them(suite_folder: Path, measured_folder: Path) -> None:
    plain, measured = tables(read_analysis(suite_folder)), tables(read_analysis(measured_folder))
    assert "### Memory" not in plain["table.md"]
    assert "peak_bytes" not in plain["table.csv"].replace("process_peak_bytes", "")
    before, after = (text["table.md"].split("### Memory")[0] for text in (plain, measured))
    assert after.strip() in before
    assert measured["table.tex"].count("{tabular}") == plain["table.tex"].count("{tabular}") + 4


def test_csv_holds_a_ledgers_integers(measured_folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(tables(read_analysis(measured_folder))["table.csv"])))
    lora = rows[2]
    assert (lora["base_bytes"], lora["peak_bytes"], lora["inputs_bytes"]) == (str(40 * MIB), str(60 * MIB), "1000")
    assert (lora["step_seconds"], lora["step_seconds_low"], lora["merged_seconds"]) == ("0.3", "0.27", "0.2")
    assert [row["ledger"] for row in rows] == ["done", "", "done", "done", "failed"]
    assert rows[4]["peak_bytes"] == rows[1]["peak_bytes"] == ""
    assert (lora["process_peak_bytes"], lora["ledger_process_peak_bytes"]) == ("", "7000")  # of runs not measured


@pytest.mark.slow
def test_memory_is_drawn_by_its_parts_where_every_line_has_a_ledger(measured_folder: Path, tmp_path: Path) -> None:
    def drawn(folder: Path, name: str) -> str:
        write_figures(read_analysis(folder), tmp_path)
        path = tmp_path / f"addresses-{name}.svg"
        return path.read_text() if path.exists() else ""

    bars = drawn(measured_folder, "memory-bars")
    assert "peak of a training step, MiB" in bars
    for part in ("base weights", "optimiser", "activations or gradients", "transient"):
        assert part in bars
    assert drawn(measured_folder, "memory") == ""  # BitFit has a score and no ledger
    copy = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (failed,) = (copy / "profiles").glob("addresses-bitfit-*.json")
    values = json.loads(failed.read_text())
    (other,) = (copy / "profiles").glob("addresses-lora-none-*.json")
    values |= {"state": "done", "reason": None, "profile": json.loads(other.read_text())["profile"]}
    failed.write_text(json.dumps(values))
    assert "peak of a training step, MiB" in drawn(copy, "memory")
    for path in (copy / "results").glob("*.json"):  # a run's process was measured, and one line has no ledger
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "high_water_bytes": 2**30}))
    failed.unlink()
    assert "peak of the process, MiB" in drawn(copy, "memory")
    assert "peak of the process, MiB" in drawn(copy, "memory-bars")
