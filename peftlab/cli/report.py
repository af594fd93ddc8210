"""`peftlab report`: write the HTML page of a suite."""

from __future__ import annotations

import os
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
        Path | None,
        typer.Option(help="File to write; report/report.html in the suite's folder by default.", show_default=False),
    ] = None,
) -> None:
    """Write a suite's results as one HTML page.

    The page holds tables to sort and filter, the figures and links to every run.
    """
    from peftlab.reports import html
    from peftlab.reports.analysis import read_analysis
    from peftlab.reports.files import FOLDER
    from peftlab.reports.sections import build_document

    folder = suite_folder(suite)
    path = output or folder / FOLDER / "report.html"
    document = build_document(read_analysis(suite))
    text = html.render(document, root=os.path.relpath(folder.resolve(), path.resolve().parent))
    try:
        if output is None:
            path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
    print(path)
