"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, e.g. recipes/lora-ner.yaml.", show_default=False)
]
RecipeFiles = Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)]
Overrides = Annotated[list[str], typer.Option("--set", help="key=value, e.g. --set method.rank=8; may be repeated.")]
Examples = Annotated[int | None, typer.Option(min=1, help="Examples per batch; the recipe's batch if not given.")]
Length = Annotated[int | None, typer.Option(min=1, help="Tokens per example; at most 128 if not given.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Finished run: its folder, one above, or its recipe.", show_default=False)
]
Trust = Annotated[
    str | None,
    typer.Option(
        "--trust-remote-code",
        metavar="REVISION",
        help="Allow the base model's own code at this commit (for a folder: this fingerprint).",
        show_default=False,
    ),
]
SuiteFolder = Annotated[
    Path, typer.Argument(metavar="SUITE", help="Folder of a suite, e.g. benchmarks/quick.", show_default=False)
]
