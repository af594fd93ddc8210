"""Measure a profile: memory, FLOPs and times of the loop's own steps on one batch."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from peftlab.distributed.fsdp import to_local
from peftlab.profiling.flops import FlopRecorder, matmul_rate
from peftlab.profiling.memory import Recorder, process_peak, recorder, static_bytes, tensor_bytes
from peftlab.profiling.profile import Flops, Inference, Memory, Profile, Times
from peftlab.profiling.profiled_workload import ProfiledWorkload, load
from peftlab.profiling.snapshots import memory_of
from peftlab.recipe import Recipe
from peftlab.results.environment import environment

STEADY = 3  # the step that counts: the optimizer state exists and every code path has run once
WARMUP, TIMED = 3, 10  # steps of the timed pass


def measure(recipe: Recipe, *, examples: int | None = None, length: int | None = None, timed: bool = True) -> Profile:
    """Load a recipe and measure it on a batch of the recipe's size, or of `examples` of `length` tokens each.

    Raises UserError if the method cannot be attached to the base model, or the base model cannot take such a batch.
    """
    accelerator = Accelerator(mixed_precision="no")
    return measured(load(recipe, accelerator, examples=examples, length=length), timed=timed)


def measured(profiled: ProfiledWorkload, *, timed: bool = True) -> Profile:
    """The profile of a workload. Its model is trained by it, and may be merged afterwards."""
    workload = profiled.workload
    device = workload.accelerator.device
    memory = memory_pass(profiled, recorder(device))
    flops = flops_pass(profiled)
    operations = (flops.forward + flops.backward) * profiled.tokens
    times = time_pass(profiled, operations) if timed else None
    return Profile(
        name=profiled.recipe.name,
        digest=profiled.recipe.digest,
        examples=len(workload.examples),
        length=max(len(example) for example in workload.examples),
        memory=memory,
        flops=flops,
        times=times,
        inference=inference_pass(profiled) if timed else None,
        environment=environment(
            device.type,
            workload.precision,
            workload.accelerator.num_processes,
            attention=profiled.attention,
        ),
    )


def memory_pass(profiled: ProfiledWorkload, recording: Recorder, *, evaluate: bool = True) -> Memory:
    """Memory of the third step, and of a pass without gradients after it."""
    static = static_bytes(profiled.workload.model, profiled.base_storages, profiled.head)
    trained = [to_local(parameter) for parameter in profiled.workload.model.parameters() if parameter.requires_grad]
    trained_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trained)
    optimizer_bytes: list[int] = []

    def note_state(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        tensors = (value for state in optimizer.state.values() for value in _tensors(state))
        optimizer_bytes.append(tensor_bytes(tensors))

    def evaluation() -> None:
        recording.mark("rest")
        profiled.workload.model.eval()
        profiled.forward(profiled.workload.model)
        recording.mark("evaluation")

    hook = register_optimizer_step_post_hook(note_state)
    try:
        with recording:
            profiled.train(STEADY, mark=recording.mark, evaluate=evaluation if evaluate else lambda: None)
    finally:
        hook.remove()
    return memory_of(
        recording.snapshots(),
        static,
        optimizer=optimizer_bytes[-1],
        gradients=trained_bytes,
        best_state=trained_bytes if profiled.recipe.training.keep_best else None,
        reserved=recording.reserved,
        process_peak=process_peak() if evaluate else None,
    )


def flops_pass(profiled: ProfiledWorkload) -> Flops:
    """FLOPs of one step, per token."""
    with FlopRecorder() as counter:
        profiled.train(1, mark=counter.mark)
    return Flops(
        forward=counter.by_phase["forward"] / profiled.tokens, backward=counter.by_phase["backward"] / profiled.tokens
    )


def time_pass(profiled: ProfiledWorkload, operations: float) -> Times:
    """Seconds of steps, by the loop's own clock. `operations` are the FLOPs of one step."""
    device = profiled.workload.accelerator.device
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    steps = profiled.train(WARMUP + TIMED).steps
    fraction = min(1.0, (time.process_time() - cpu_start) / (time.perf_counter() - wall_start))
    ends = [step.seconds for step in steps][WARMUP - 1 :]
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    median = quantile(seconds, 0.5)
    rate = matmul_rate(device, getattr(torch, profiled.workload.precision))
    return Times(
        steps=len(seconds),
        median=median,
        quartiles=(quantile(seconds, 0.25), quantile(seconds, 0.75)),
        tokens_per_second=profiled.tokens / median,
        matmul_flops_per_second=rate,
        matmul_fraction=operations / median / rate,
        # With several threads, waiting for one another cannot be distinguished from waiting for a processor.
        processor_fraction=fraction if device.type == "cpu" and torch.get_num_threads() == 1 else None,
    )


def inference_pass(profiled: ProfiledWorkload) -> Inference:
    """Seconds of a forward pass as trained, with the method disabled, and merged if possible. It stays merged."""
    method, model = profiled.recipe.method, profiled.workload.model
    unmerged, outputs = _forward_seconds(profiled, model)
    base = None
    try:
        disabled = method.disabled(model)
    except NotImplementedError:
        pass
    else:
        with disabled:
            base, _ = _forward_seconds(profiled, model)
    merged = error = None
    if method.merges and not profiled.recipe.quantization.quantizes:
        merged, after = _forward_seconds(profiled, method.merge(model))
        error = max(float((one - other).abs().max()) for one, other in zip(outputs, after, strict=True))
    return Inference(unmerged=unmerged, merged=merged, base=base, merge_error=error)


def _forward_seconds(profiled: ProfiledWorkload, model: nn.Module) -> tuple[float, list[Tensor]]:
    """Median seconds of several passes, and the logits."""
    model.eval()
    seconds = []
    for _ in range(WARMUP + TIMED):
        start = _now(profiled.workload.accelerator.device)
        outputs = profiled.forward(model)
        seconds.append(_now(profiled.workload.accelerator.device) - start)
    logits = [value.float() for name, value in outputs.items() if name.endswith("logits")]
    return quantile(seconds[WARMUP:], 0.5), logits


def _tensors(state: Mapping[str, Any]) -> Iterator[Tensor]:
    yield from (value for value in state.values() if isinstance(value, Tensor))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def quantile(values: Sequence[float], fraction: float) -> float:
    """The quantile, interpolated linearly.

    >>> quantile([4.0, 1.0, 2.0, 3.0], 0.5)
    2.5
    """
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
