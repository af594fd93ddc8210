"""What a run says before it trains: labels and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from accelerate import Accelerator

from peftlab.data.examples import Encoded, Splits
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment, Parameters
from peftlab.runs import launch

Lines = Iterator[tuple[str, str]]


def data_lines(recipe: Recipe, model_source: str, rows: Splits, encoded: Mapping[str, Encoded]) -> Lines:
    """Which run it is, and on what."""
    yield "recipe", f"{recipe.name}  {recipe.digest}"
    yield "model", model_source
    sizes = ", ".join(
        f"{len(part.rows):,} {split} ({sum(sum(recipe.task.lengths(e)) for e in part.examples):,} tokens)"
        for split, part in encoded.items()
    )
    yield "data", f"{rows.source}: {sizes}"
    for split, count in rows.leaks.items():
        if count:
            yield (
                "leaks",
                f"{count:,} of {len(rows.rows[split]):,} of {split} are in train too, but for case and white space "
                "(data.drop_leaks: true takes them out of train)",
            )


def model_lines(recipe: Recipe, parameters: Parameters, accelerator: Accelerator, environment: Environment) -> Lines:
    """What trains, and where."""
    yield (
        "method",
        f"{recipe.method.title}: {parameters.trainable:,} trainable of {parameters.base:,} "
        f"({parameters.trainable_fraction:.2%}), {parameters.head:,} of them the head",
    )
    device, count, quantization = accelerator.device, accelerator.num_processes, recipe.quantization
    placed = ", in shares (FSDP2)" if environment.sharded else ""
    if environment.zero is not None:
        placed = f", in shares (DeepSpeed, ZeRO-{environment.zero})"
    if environment.device_map is not None:
        placed = f", layers over {len(environment.hardware.accelerators)} GPUs ({environment.device_map})"
    held = f"base in {quantization.title}" if quantization.quantizes else "base unquantised"
    remark = quantization.remark(device.type)
    yield (
        "device",
        f"{device.type}, {count} {'process' if count == 1 else 'processes'}{placed}, {environment.precision}, {held}"
        + (f": {remark}" if remark else ""),
    )
    if environment.device_map is None and (more := launch.remark(accelerator)) is not None:
        yield "devices", more
