"""`peftlab table`: write the tables and figures of a suite."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import SuiteFolder
from peftlab.errors import UserError
from peftlab.suites.store import suite_folder


class FigureFormat(StrEnum):
    """Vector formats of figures."""

    PDF = "pdf"
    SVG = "svg"


@command()
def table(
    suite: SuiteFolder,
    figures: Annotated[
        list[FigureFormat], typer.Option("--figures", help="Also write the figures in this format; may be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """Write a suite's tables (Markdown, LaTeX, CSV) and figures.

    They go to the folder `report` of the suite; figures are PNG.
    """
    from peftlab.reports.analysis import read_analysis
    from peftlab.reports.files import FOLDER, write_report

    folder = suite_folder(suite) / FOLDER
    analysis = read_analysis(suite)
    try:
        for path in write_report(analysis, folder, [figure_format.value for figure_format in figures]):
            print(path)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
