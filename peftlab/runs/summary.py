"""Lines that a run prints before it trains, as labels and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator

from peftlab.data.examples import Encoded, Splits
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment, Parameters
from peftlab.runs import launch

Lines = Iterator[tuple[str, str]]


def data_lines(recipe: Recipe, model_source: str, rows: Splits, encoded: Mapping[str, Encoded]) -> Lines:
    """Lines about the recipe, the base model and the data."""
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
                f"{count:,} of {len(rows.rows[split]):,} in {split} are also in train, up to case and white space "
                "(data.drop_leaks: true removes them from train)",
            )


def optimizer_lines(recipe: Recipe, model: torch.nn.Module, accelerator: Accelerator) -> Lines:
    """A line about an optimizer that does not treat all tensors alike, or does not train the weights that are saved."""
    optimizer = recipe.training.optimizer
    remark = optimizer.remark(model, accelerator.device.type)
    if remark is not None:
        yield "optimizer", f"{optimizer.title}, {optimizer.state_bytes(model):,} bytes of state: {remark}"


def text_branch_lines(outside: Mapping[str, int]) -> Lines:
    """Line about the parts of a multimodal base that stay as they are, with the parameters of each."""
    if outside:
        parts = ", ".join(f"{name} ({count:,})" for name, count in outside.items())
        yield "text only", f"parameters left as they are, not quantized: {parts}"


def storage_lines(dequantized: str | None, read_directly: Sequence[str]) -> Lines:
    """Lines about weights that were dequantized, from which format, and about layers that were not quantized."""
    if dequantized is not None:
        yield "stored", f"weights stored in {dequantized} were dequantized: the base takes the memory of one in float"
    if read_directly:
        yield (
            "kept in float",
            f"{len(read_directly)} linear layers whose weights the model reads itself, e.g. {read_directly[0]}",
        )


def model_lines(recipe: Recipe, parameters: Parameters, accelerator: Accelerator, environment: Environment) -> Lines:
    """Lines about the trainable parameters and the devices."""
    yield (
        "method",
        f"{recipe.method.title}: {parameters.trainable:,} trainable of {parameters.base:,} "
        f"({parameters.trainable_fraction:.2%}), {parameters.head:,} of them in the head",
    )
    device, count, quantization = accelerator.device, accelerator.num_processes, recipe.quantization
    placement = ", sharded (FSDP2)" if environment.sharded else ""
    if environment.zero is not None:
        placement = f", sharded (DeepSpeed ZeRO-{environment.zero})"
    if environment.device_map is not None:
        placement = f", layers over {len(environment.hardware.accelerators)} GPUs ({environment.device_map})"
    storage = f"base in {quantization.title}" if quantization.quantizes else "base not quantized"
    attention = "" if environment.attention is None else f", {environment.attention} attention"
    remark = quantization.remark(device.type)
    yield (
        "device",
        f"{device.type}, {count} {'process' if count == 1 else 'processes'}{placement}, "
        f"{environment.precision}{attention}, {storage}" + (f": {remark}" if remark else ""),
    )
    if environment.device_map is None and (hint := launch.remark(accelerator)) is not None:
        yield "devices", hint
