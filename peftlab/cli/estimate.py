"""`peftlab estimate`: predict the memory of a recipe's training step from the shapes of its tensors."""

from __future__ import annotations

from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import Examples, Length, Overrides, RecipeFile
from peftlab.recipe import load_recipe


@command()
def estimate(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help='Memory of a device, e.g. "24 GiB".', show_default=False)] = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices that share a batch.")] = 1,
    sharded: Annotated[bool, typer.Option("--sharded", help="Shard the model over the devices (FSDP2).")] = False,
    examples: Examples = None,
    length: Length = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per quantization.")] = False,
) -> None:
    """Predict a recipe's memory, and the micro-batch that fits.

    Loads no weights. Prints an estimate for each quantization of the base model; with --device, the accumulation with
    which a training step fits into that memory.
    """
    loaded = load_recipe(recipe, overrides)
    from peftlab.profiling import estimate as estimation
    from peftlab.profiling.summary import estimate_lines

    limit = None if device is None else estimation.parse_size(device)
    estimates = estimation.estimate(
        loaded, limit=limit, devices=devices, sharded=sharded, examples=examples, length=length
    )
    for each in estimates:
        if as_json:
            print(each.model_dump_json())
            continue
        print(f"quantization: {each.quantization}")
        for label, text in estimate_lines(each, limit):
            print(f"  {label:<14}{text}")
