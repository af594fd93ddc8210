"""Does it fit? The loop's own steps on a model without values, for a recipe and for each quantisation of its base."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.errors import UserError
from peftlab.loading.model import longest_of_config
from peftlab.models.model import ModelFiles, Shape
from peftlab.models.tiny_model import byte_tokenizer
from peftlab.profiling.fake_model import (
    ShapeRecorder,
    fake_process_group,
    full_config,
    meta_model,
    shapes_alone,
    to_shapes,
)
from peftlab.profiling.measure import batch_shape, memory_pass, subject
from peftlab.profiling.profile import MIB, Memory, MemoryEstimate
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe
from peftlab.runs.launch import reset_accelerator_state
from peftlab.tasks import Task
from peftlab.training.precision import resolve_precision

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Bytes.

    >>> parse_size("24 GiB"), parse_size("1.5MB")
    (25769803776, 1500000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f"--device {text}: a size with its unit was expected, e.g. 24 GiB")
    return round(float(found[1]) * UNITS[found[2].upper()])


def estimate(
    recipe: Recipe,
    *,
    limit: int | None = None,
    devices: int = 1,
    sharded: bool = False,
    examples: int | None = None,
    length: int | None = None,
) -> Iterator[MemoryEstimate]:
    """A forecast for the recipe as it is, and then for each other quantisation, with the batch cut so that it fits.

    Of several devices each holds a copy of the model (DDP), or a share of it (FSDP2).
    """
    if sharded and devices == 1:
        raise UserError("--sharded: one device has nobody to share with; say how many there are: --devices 2")
    others = [part(kind=kind) for kind, part in QUANTIZATIONS.items() if kind != recipe.quantization.kind]
    for quantization in [recipe.quantization, *(other.as_shardable() if sharded else other for other in others)]:
        wanted = recipe.model_copy(update={"quantization": quantization})
        reason = wanted.incompatible_with(str(recipe.model.shape().values["model_type"]), sharded=sharded)
        if reason is not None:
            yield MemoryEstimate(quantization=quantization.kind, unsupported=reason)
            continue
        yield estimate_memory(wanted, limit=limit, devices=devices, sharded=sharded, examples=examples, length=length)


def estimate_memory(
    recipe: Recipe,
    *,
    limit: int | None,
    devices: int = 1,
    sharded: bool = False,
    examples: int | None = None,
    length: int | None = None,
) -> MemoryEstimate:
    """The recipe's own accumulation, or the least above it with which a step fits into `limit`."""
    shape = recipe.model.shape()
    batch = sample_batch(recipe, shape, devices=devices, examples=examples, length=length)
    of_device = len(batch.share)

    def look(accumulation: int, share: Sequence[Example]) -> tuple[Memory, int]:
        """What a step on these examples holds, and what is needed for it."""
        settings = recipe.training.model_copy(update={"accumulation": accumulation})
        cut = recipe.model_copy(update={"training": settings})
        memory = predict(cut, shape, dataclasses.replace(batch, share=share), sharers=devices if sharded else 1)
        copies = devices > 1 and not sharded
        exchanged = memory.gradients if copies else 0  # the buckets in which processes exchange them
        return memory, memory.peak + (memory.best_state or 0) + exchanged

    accumulation = min(recipe.training.accumulation, of_device)
    memory, needed = look(accumulation, batch.share)
    at_least = False
    if limit is not None and needed > limit and accumulation < of_device:
        # Two examples, one at a time, hold less than any cut of them all, if only by the rest of the batch itself.
        least, least_needed = look(2, batch.share[:2])
        at_least = least_needed > limit
        if at_least:
            memory, needed, accumulation = least, least_needed, of_device
        while needed > limit and accumulation < of_device:
            accumulation = min(accumulation * 2, of_device)
            memory, needed = look(accumulation, batch.share)
    return MemoryEstimate(
        quantization=recipe.quantization.kind,
        memory=memory,
        needed=needed,
        at_least=at_least,
        fits=None if limit is None else needed <= limit,
        precision=_precision(recipe),
        examples=batch.count,
        length=batch.length,
        accumulation=accumulation,
        micro_batch=-(-of_device // accumulation),
        devices=devices,
        sharded=sharded,
    )


def oom_hint(recipe: Recipe, devices: int) -> str:
    """What the shapes say of a step that was out of memory; "" if they cannot be asked where so little is left."""
    on_gpu = torch.cuda.is_available()
    if on_gpu and devices > 1:
        return ""  # the others may still be at the step
    try:
        if on_gpu:
            reset_accelerator_state()  # which was on the GPU: shapes are on the CPU
        forecast = estimate_memory(recipe, limit=None, devices=devices)
    except (UserError, RuntimeError, MemoryError, OSError):
        return ""
    memory = forecast.memory
    assert memory is not None
    parts = {"weights": memory.weights, "optimiser": memory.optimizer, "activations": memory.activations}
    said = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in parts.items())
    return (
        f"; by its shapes a step in micro-batches of {forecast.micro_batch} x {forecast.length} tokens holds "
        f"{(forecast.needed or 0) / MIB:,.0f} MiB at its peak ({said}): `peftlab estimate` says what fits"
    )


@dataclass(frozen=True)
class Batch:
    """What a device is given in a step, made of the task's own sample."""

    task: Task  # bind
    tokenizer: PreTrainedTokenizerBase
    count: int  # examples of the step, on all devices
    length: int  # tokens of each
    share: Sequence[Example]  # of one device


def sample_batch(
    recipe: Recipe, shape: Shape, *, devices: int = 1, examples: int | None = None, length: int | None = None
) -> Batch:
    """The recipe's batch in size, or of `examples` of `length` tokens."""
    rows = recipe.task.sample_rows()
    task = recipe.task.from_training(rows).bind(rows)
    limit = longest_of_config(shape.values, shape.source, task, reserved=recipe.method.positions)
    count, length = batch_shape(recipe.training, limit, examples=examples, length=length)
    tokenizer = byte_tokenizer(full_config(shape.values, task))
    encoded = task.training_examples(task.encode(rows, tokenizer, limit).examples, limit)
    share = [task.stretched(encoded[i % len(encoded)], length) for i in range(-(-count // devices))]
    return Batch(task, tokenizer, count, length, share)


def predict(recipe: Recipe, shape: Shape, batch: Batch, *, sharers: int = 1) -> Memory:
    """What a device holds of a step, if it has the model to itself or shares it with others."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    precision = _precision(recipe)
    base = meta_model(
        shape,
        ModelFiles(folder=Path(), source=shape.source, fingerprint=""),
        batch.task,
        recipe.quantization,
        compute=getattr(torch, precision),
        frozen=not recipe.method.trains_base,
        dropout=recipe.training.dropout,
        padding_token=batch.tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        ready = subject(
            recipe,
            base,
            batch.share,
            task=batch.task,
            tokenizer=batch.tokenizer,
            accelerator=accelerator,
            precision=precision,
        )
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(fake_process_group(sharers)) if sharers > 1 else None
        stack.enter_context(shapes_alone())
        ready = dataclasses.replace(ready, before=to_shapes(ready.workload.model, recipe.quantization, ready.before))
        if processes is not None:
            ready = ready.sharded(processes)
        return memory_pass(ready, ShapeRecorder(), evaluate=False)


def _precision(recipe: Recipe) -> Precision:
    """The recipe's, `auto` as on this machine's GPU if it has one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return resolve_precision(recipe.training.precision, device)


def lines(forecast: MemoryEstimate, limit: int | None) -> list[tuple[str, str]]:
    """What a person wants to know of it."""
    if forecast.memory is None:
        return [("unsupported", str(forecast.unsupported))]
    memory = forecast.memory
    parts = {
        "weights": memory.base + memory.method + memory.head,
        "constants": memory.constants,
        "optimiser": memory.optimizer,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "transient": memory.transient,
        "peak": memory.peak,
        "needed": forecast.needed or 0,
    }
    found = [(label, f"{size / MIB:,.0f} MiB") for label, size in parts.items() if size]
    hint = " (mostly bfloat16 on a GPU: --set training.precision=bfloat16)" if forecast.precision == "float32" else ""
    found.append(("precision", f"{forecast.precision}{hint}"))
    batch = f"{forecast.examples} x {forecast.length} tokens a step"
    if forecast.devices > 1:
        batch += f" on {forecast.devices} devices" + (" in shares" if forecast.sharded else "")
    found.append(
        ("batch", f"{batch}: micro-batches of {forecast.micro_batch}, training.accumulation={forecast.accumulation}")
    )
    if limit is not None:
        verdict = "fits" if forecast.fits else "does not fit, even one example at a time"
        if forecast.at_least:
            verdict += " (shown is what two of them need)"
        found.append(("verdict", f"{verdict} in {limit / MIB:,.0f} MiB"))
    return found
