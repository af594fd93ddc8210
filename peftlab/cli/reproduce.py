"""`peftlab reproduce`: run a stored result again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command


@command()
def reproduce(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="File of a suite's results folder.", show_default=False)
    ],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Run a stored result again and compare the scores.

    Exit code 0 if they are bit-identical or within the confidence interval, else 1.
    """
    from peftlab.suites.reproduce import reproduce as run_again
    from peftlab.suites.store import read_record

    read_record(result)
    comparison = run_again(result, threads)
    for difference in comparison.differences:
        print(f"{'differs':<11}{difference}")
    print(f"{'verdict':<11}{comparison.verdict}")
    raise SystemExit(0 if comparison.same or comparison.within else 1)
