"""LaTeX report of a suite."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from peftlab.reports import latex
from peftlab.reports.analysis import read_analysis
from peftlab.reports.document import Cell, Column, Document, Section, Table, TableRow
from tests.reports.example_suite import SUITE, report_of
from tests.sampling import slow_after

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("suite", ["suite_folder", "profiled_folder"])
def test_latex_is_balanced_escaped_and_cites_what_the_bibliography_has(
    suite: str, request: pytest.FixtureRequest
) -> None:
    """Checks that need no TeX engine."""
    files = report_of(read_analysis(request.getfixturevalue(suite)))
    text = files["table.tex"]
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    closed = re.findall(r"\\end\{(\w+)\}", text)
    assert sorted(opened) == sorted(closed)
    assert re.sub(r"\\.", "", text).count("{") == re.sub(r"\\.", "", text).count("}")
    body = text.split(r"\begin{document}")[1]
    prose = re.sub(r"\\(label|cite|bibliography|suitefigure)\S*|\}~", "", body)
    assert not re.search(r"(?<!\\)[_#^~]", prose)
    for alignment, rows in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, flags=re.S):
        for row in re.findall(r"^(.*)\\\\$", rows, flags=re.M):
            assert len(re.findall(r"(?<!\\)&", row)) + 1 == len(alignment)
    cited = set(re.findall(r"\\cite\{(.*?)\}", text)[0].split(","))
    assert cited == set(re.findall(r"^@misc\{(.*),$", files["references.bib"], flags=re.M))
    assert {"hu2021lora", "dettmers2023qlora", "benzaken2021bitfit"} <= cited


def test_a_table_longer_than_a_page_is_split_with_one_label() -> None:
    rows = tuple(TableRow((Cell(f"method {number}"),)) for number in range(2 * latex.ROWS_PER_PAGE + 1))
    table = Table("t", "Scores", (Column("method", numeric=False),), rows)
    text = latex.render(Document("suite", (), (Section("results", (table,)),)))
    parts = text.split(r"\begin{table}")[1:]
    assert [len(re.findall(r"method \d", part)) for part in parts] == [latex.ROWS_PER_PAGE, latex.ROWS_PER_PAGE, 1]
    assert text.count(r"\label{tab:suite-t}") == 1
    assert text.count("Scores, continued.") == 2


def test_a_long_title_of_a_column_is_broken_so_that_the_table_need_not_shrink() -> None:
    columns = (Column("method", numeric=False), Column("forward MFLOPs/token"))
    table = Table("t", "Scores", columns, (TableRow((Cell("lora"), Cell("22.42"))),))
    text = latex.render(Document("suite", (), (Section("results", (table,)),)))
    assert r"method & \shortstack[r]{forward \\ MFLOPs/token} \\" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None or shutil.which("bibtex") is None, reason="needs a TeX engine")
@pytest.mark.parametrize("suite", slow_after(1, ["profiled_folder", "suite_folder", "ner", "quick"]))
def test_latex_compiles_and_nothing_is_wider_than_the_page(
    suite: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = BENCHMARKS / suite if (BENCHMARKS / suite).is_dir() else request.getfixturevalue(suite)
    for name, text in report_of(read_analysis(folder)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    for command in (latex, ["bibtex", "table"], latex, latex):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "table.log").read_text(encoding="latin-1")
    assert not re.search(r"Overfull|Warning: (Citation|Reference|There were)|multiply defined", log)
    assert (tmp_path / "table.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX engine")
def test_latex_of_a_suite_with_many_tasks_compiles(tmp_path: Path) -> None:
    many = "".join(f"  t{number}: {{}}\n" for number in range(40))
    suite = SUITE.replace("tasks: {addresses: {}}\n", f"tasks:\n{many}").replace("task: addresses", "task: t1")
    (tmp_path / "suite.yaml").write_text(suite + "name: mine\n")
    (tmp_path / "table.tex").write_text(report_of(read_analysis(tmp_path))["table.tex"], encoding="utf-8")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(latex, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
