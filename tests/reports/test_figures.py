"""Figures of a suite."""

import json
import shutil
from pathlib import Path

import pytest

from peftlab.reports.analysis import read_analysis
from peftlab.reports.figures import draw
from peftlab.reports.plots import Plot, plots
from peftlab.suites.profiles import FOLDER as PROFILES


def plots_of(folder: Path) -> dict[str, Plot]:
    return {name: plot for name, _, plot in plots(read_analysis(folder), "addresses")}


def test_memory_is_shown_by_tensor_group_if_every_row_is_profiled(profiled_folder: Path, tmp_path: Path) -> None:
    bars = draw(plots_of(profiled_folder)["memory-bars"], "svg").decode()
    assert "peak memory of a training step (MiB)" in bars
    for part in ("base weights", "optimizer", "activations or gradients", "transient"):
        assert part in bars
    assert "memory" not in plots_of(profiled_folder)  # BitFit has a score and no profile
    copy = Path(shutil.copytree(profiled_folder, tmp_path / "example"))
    (failed,) = (copy / PROFILES).glob("addresses-bitfit-*.json")
    values = json.loads(failed.read_text())
    (other,) = (copy / PROFILES).glob("addresses-lora-none-*.json")
    values |= {"state": "done", "reason": None, "profile": json.loads(other.read_text())["profile"]}
    failed.write_text(json.dumps(values))
    assert plots_of(copy)["memory"].x_label == "peak memory of a training step (MiB)"


def test_memory_of_the_process_is_shown_if_a_row_is_not_profiled(profiled_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(profiled_folder, tmp_path / "example"))
    for path in (copy / "results").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "peak_rss_bytes": 2**30}))
    (failed,) = (copy / PROFILES).glob("addresses-bitfit-*.json")
    failed.unlink()
    of_process = plots_of(copy)
    assert of_process["memory"].x_label == of_process["memory-bars"].x_label == "peak memory of the process (MiB)"


@pytest.mark.parametrize("file_format", ["png", "svg", "pdf"])
def test_a_figure_is_drawn_in_every_format(suite_folder: Path, file_format: str) -> None:
    content = draw(plots_of(suite_folder)["parameters"], file_format)  # type: ignore[arg-type]
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[file_format])
