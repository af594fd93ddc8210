"""`peftlab report`: write the HTML page of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import SuiteFolder
from peftlab.errors import UserError
from peftlab.suites.store import suite_folder


@command()
def report(
    suite: SuiteFolder,
    output: Annotated[
        Path | None, typer.Option(help="The page; report.html in the suite's folder if not given.", show_default=False)
    ] = None,
) -> None:
    """Write a suite's results as one HTML page.

    The page holds a table to sort and filter, the figures and every run.
    """
    from peftlab.reports.html import page
    from peftlab.reports.markdown import read_analysis

    path = output or suite_folder(suite) / "report.html"
    text = page(read_analysis(suite))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
    print(path)
