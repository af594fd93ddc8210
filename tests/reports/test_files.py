"""Files of a suite's report."""

from pathlib import Path

import pytest

from peftlab.reports.analysis import read_analysis
from peftlab.reports.files import FOLDER, write_report
from tests.reports.example_suite import report_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SUITES = sorted(path.parents[1] for path in BENCHMARKS.glob(f"*/{FOLDER}/table.md"))


def test_rendering_twice_gives_the_same_bytes(suite_folder: Path, tmp_path: Path) -> None:
    paths = write_report(read_analysis(suite_folder), tmp_path / "one", ["pdf", "svg"])
    write_report(read_analysis(suite_folder), tmp_path / "two", ["pdf", "svg"])
    figures = {path.stem for path in paths if path.parent.name == "figures"}
    assert figures == {
        "addresses-parameters", "addresses-learning-rates", "addresses-trials", "addresses-learning-curves"
    }  # fmt: skip
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_vector_figures_are_written_only_on_request(suite_folder: Path, tmp_path: Path) -> None:
    analysis = read_analysis(suite_folder)
    formats = {path.suffix for path in write_report(analysis, tmp_path / "one", []) if path.parent.name == "figures"}
    assert formats == {".png"}


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.name)
def test_a_committed_report_is_what_its_results_give(suite: Path) -> None:
    for name, content in report_of(read_analysis(suite)).items():
        assert (suite / FOLDER / name).read_text(encoding="utf-8") == content, name
