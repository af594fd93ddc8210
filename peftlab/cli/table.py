"""`peftlab table`: write the tables and figures of a suite."""

from __future__ import annotations

from peftlab.cli.command import command
from peftlab.cli.options import SuiteFolder
from peftlab.errors import UserError
from peftlab.suites.store import suite_folder


@command()
def table(suite: SuiteFolder) -> None:
    """Write a suite's tables (Markdown, LaTeX, CSV) and figures."""
    from peftlab.reports.figures import write_figures
    from peftlab.reports.markdown import read_analysis, tables

    folder = suite_folder(suite)
    analysis = read_analysis(suite)
    try:
        for name, text in tables(analysis).items():
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
        for path in write_figures(analysis, folder / "figures"):
            print(path)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
