"""Estimate the memory of a training step: the loop's own steps on fake tensors, for each quantization of the base."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.errors import UserError
from peftlab.loading import stored_quantization
from peftlab.loading.model import LoadOptions, longest_of_config
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.model import KnownConfig
from peftlab.profiling.fake_model import (
    ShapeRecorder,
    fake_process_group,
    fake_tensors,
    full_config,
    materialize_fake,
    meta_model,
)
from peftlab.profiling.measure import memory_pass
from peftlab.profiling.profile import MIB, Memory, MemoryEstimate
from peftlab.profiling.profiled_workload import ProfiledWorkload, attach, batch_shape
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe
from peftlab.runs.launch import reset_accelerator_state
from peftlab.tasks import Task
from peftlab.training.precision import resolve_precision

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Bytes of a size with its unit. Raises UserError.

    >>> parse_size("24 GiB"), parse_size("1.5MB")
    (25769803776, 1500000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"--device {text}: a size with its unit was expected, e.g. 24 GiB")
    return round(float(match[1]) * UNITS[match[2].upper()])


def estimate(
    recipe: Recipe,
    *,
    limit: int | None = None,
    devices: int = 1,
    sharded: bool = False,
    examples: int | None = None,
    length: int | None = None,
) -> Iterator[MemoryEstimate]:
    """One estimate for the recipe as it is, then one for each other quantization of its base model.

    `limit` is in bytes per device: the batch is split into as many micro-batches as it takes to fit. With several
    devices, each holds a copy of the model (DDP) or, if `sharded`, a shard of it (FSDP2). Raises UserError.
    """
    if sharded and devices == 1:
        raise UserError("--sharded: needs several devices; set their number, e.g. --devices 2")
    others = [part(kind=kind) for kind, part in QUANTIZATIONS.items() if kind != recipe.quantization.kind]
    for quantization in [recipe.quantization, *(other.as_shardable() if sharded else other for other in others)]:
        variant = recipe.model_copy(update={"quantization": quantization})
        values = recipe.model.config().values
        reason = (
            quantization.missing_library()
            or stored_quantization.incompatible_with(values, quantization)
            or variant.incompatible_with(str(values["model_type"]), sharded=sharded)
        )
        if reason is not None:
            yield MemoryEstimate(quantization=quantization.kind, unsupported=reason)
            continue
        yield estimate_memory(variant, limit=limit, devices=devices, sharded=sharded, examples=examples, length=length)


def estimate_memory(
    recipe: Recipe,
    *,
    limit: int | None,
    devices: int = 1,
    sharded: bool = False,
    examples: int | None = None,
    length: int | None = None,
) -> MemoryEstimate:
    """The estimate with the recipe's accumulation, or with the smallest larger one that fits into `limit` bytes."""
    config = recipe.model.config()
    batch = sample_batch(recipe, config, devices=devices, examples=examples, length=length)
    per_device = len(batch.local)

    def needed_for(accumulation: int, local: Sequence[Example]) -> tuple[Memory, int]:
        """Memory of a step on these examples, and the bytes needed for training."""
        settings = recipe.training.model_copy(update={"accumulation": accumulation})
        variant = recipe.model_copy(update={"training": settings})
        shards = devices if sharded else 1
        memory = predict(variant, config, dataclasses.replace(batch, local=local), shards=shards)
        buckets = memory.gradients if devices > 1 and not sharded else 0  # of DDP's gradient all-reduce
        return memory, memory.peak + (memory.best_state or 0) + buckets

    accumulation = min(recipe.training.accumulation, per_device)
    memory, needed = needed_for(accumulation, batch.local)
    at_least = False
    if limit is not None and needed > limit and accumulation < per_device:
        # Two examples, one at a time, need less than all of them in any number of micro-batches.
        least, least_needed = needed_for(2, batch.local[:2])
        at_least = least_needed > limit
        if at_least:
            memory, needed, accumulation = least, least_needed, per_device
        while needed > limit and accumulation < per_device:
            accumulation = min(accumulation * 2, per_device)
            memory, needed = needed_for(accumulation, batch.local)
    attached = meta_workload(recipe, config, batch)
    return MemoryEstimate(
        quantization=recipe.quantization.kind,
        memory=memory,
        reach=attached.reach,
        reach_sentences=list(attached.reach_sentences),
        needed=needed,
        at_least=at_least,
        fits=None if limit is None else needed <= limit,
        precision=_precision(recipe),
        examples=batch.count,
        length=batch.length,
        accumulation=accumulation,
        micro_batch=-(-per_device // accumulation),
        devices=devices,
        sharded=sharded,
    )


def oom_hint(recipe: Recipe, devices: int) -> str:
    """Estimated memory of a step that was out of memory, as the end of its error message.

    Returns "" if the estimate itself fails, e.g. for lack of memory, or on several GPUs.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and devices > 1:
        return ""  # the other processes may still be at the step
    try:
        if on_gpu:
            reset_accelerator_state()  # the run's is on the GPU; fake tensors are on the CPU
        estimated = estimate_memory(recipe, limit=None, devices=devices)
    except (UserError, RuntimeError, MemoryError, OSError):
        return ""
    memory = estimated.memory
    assert memory is not None
    parts = {"weights": memory.weights, "optimizer": memory.optimizer, "activations": memory.activations}
    text = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in parts.items())
    return (
        f"; estimated peak of a step in micro-batches of {estimated.micro_batch} x {estimated.length} tokens: "
        f"{(estimated.needed or 0) / MIB:,.0f} MiB ({text}); `peftlab estimate` shows what fits"
    )


@dataclass(frozen=True)
class Batch:
    """A batch made of the task's sample rows."""

    task: Task
    """Bound to the sample rows."""
    tokenizer: PreTrainedTokenizerBase
    count: int
    """Examples per step, on all devices."""
    length: int
    """Tokens per example."""
    local: Sequence[Example]
    """Examples of one device."""


def sample_batch(
    recipe: Recipe, config: KnownConfig, *, devices: int = 1, examples: int | None = None, length: int | None = None
) -> Batch:
    """A batch of the recipe's size, or of `examples` of `length` tokens each. Raises UserError."""
    rows = recipe.task.sample_rows()
    task = recipe.task.from_training(rows).bind(rows)
    limit = longest_of_config(config.values, config.source, task, reserved=recipe.method.positions)
    count, length = batch_shape(recipe.training, limit, examples=examples, length=length)
    tokenizer = byte_tokenizer(full_config(config.values, task))
    encoded = task.training_examples(task.encode(rows, tokenizer, limit).examples, limit)
    local = [task.stretched(encoded[i % len(encoded)], length) for i in range(-(-count // devices))]
    return Batch(task, tokenizer, count, length, local)


def predict(recipe: Recipe, config: KnownConfig, batch: Batch, *, shards: int = 1) -> Memory:
    """Memory of one device in a step, if the model is sharded over `shards` devices."""
    profiled = meta_workload(recipe, config, batch)
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(fake_process_group(shards)) if shards > 1 else None
        stack.enter_context(fake_tensors())
        storages = materialize_fake(profiled.workload.model, recipe.quantization, profiled.base_storages)
        profiled = dataclasses.replace(profiled, base_storages=storages)
        if mesh is not None:
            profiled = profiled.sharded(mesh)
        return memory_pass(profiled, ShapeRecorder(), evaluate=False)


def meta_workload(recipe: Recipe, config: KnownConfig, batch: Batch) -> ProfiledWorkload:
    """The recipe's model with the method attached, on the meta device, and the batch."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    precision = _precision(recipe)
    options = LoadOptions(
        device=torch.device("meta"),
        compute=getattr(torch, precision),
        frozen=not recipe.method.trains_base,
        dropout=recipe.training.dropout,
        padding_token=batch.tokenizer.pad_token_id,
    )
    base = meta_model(config, batch.task, recipe.quantization, options)
    with torch.device("meta"):
        return attach(
            recipe,
            base,
            batch.local,
            task=batch.task,
            tokenizer=batch.tokenizer,
            accelerator=accelerator,
            precision=precision,
            device=_device(),
        )


def _precision(recipe: Recipe) -> Precision:
    """The recipe's precision; `auto` is resolved for the device that is estimated."""
    return resolve_precision(recipe.training.precision, _device())


def _device() -> torch.device:
    """The device that is estimated: this machine's GPU if it has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
