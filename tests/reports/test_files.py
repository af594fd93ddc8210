"""Files of a suite's report."""

from pathlib import Path

import pytest

from peftlab.reports.analysis import read_analysis
from peftlab.reports.figures import draw, write_figures
from peftlab.reports.files import FOLDER, write_report
from peftlab.reports.sections import build_document
from tests.reports.example_suite import report_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SUITES = sorted(path.parents[1] for path in BENCHMARKS.glob(f"*/{FOLDER}/table.md"))


def test_rendering_twice_gives_the_same_bytes(suite_folder: Path, tmp_path: Path) -> None:
    assert report_of(read_analysis(suite_folder)) == report_of(read_analysis(suite_folder))
    plot = next(build_document(read_analysis(suite_folder)).figures).plot
    for file_format in ("png", "svg", "pdf"):
        assert draw(plot, file_format) == draw(plot, file_format)  # type: ignore[arg-type]


def test_the_report_holds_the_tables_and_all_figures(suite_folder: Path, tmp_path: Path) -> None:
    paths = write_report(read_analysis(suite_folder), tmp_path, [])
    assert all(path.is_file() for path in paths)
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        "table.md", "table.tex", "table.csv", "references.bib",
        "figures/addresses-parameters.png", "figures/addresses-learning-rates.png",
        "figures/addresses-trials.png", "figures/addresses-learning-curves.png",
    }  # fmt: skip


def test_vector_figures_are_written_on_request(suite_folder: Path, tmp_path: Path) -> None:
    figure = next(build_document(read_analysis(suite_folder)).figures)
    paths = write_figures([(figure.name, figure.plot)], tmp_path, ["png", "pdf", "svg"])
    assert [path.suffix for path in paths] == [".png", ".pdf", ".svg"]


@pytest.mark.parametrize(
    "suite",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.name == "ner"), id=path.name) for path in SUITES],
)
def test_a_committed_report_is_what_its_results_give(suite: Path) -> None:
    for name, content in report_of(read_analysis(suite)).items():
        assert (suite / FOLDER / name).read_text(encoding="utf-8") == content, name
