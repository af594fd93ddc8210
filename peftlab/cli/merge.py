"""`peftlab merge`: merge an adapter into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.find_run import find_run
from peftlab.cli.options import RunFolder, Trust


@command()
def merge(
    folder: RunFolder,
    output: Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)],
    trust: Trust = None,
) -> None:
    """Merge an adapter into its base model at its original precision.

    Prints the largest difference between the logits of the merged model and those of the model as trained.
    """
    folder = find_run(folder)
    from peftlab.runs.inference import merge as merge_run

    difference = merge_run(folder, output, trust)
    print(f"{output}: merged; largest difference of a logit from the model as trained {difference:.2e}")
