"""Profiles and estimates in lines of text."""

from __future__ import annotations

from peftlab.profiling.profile import MIB, Inference, Memory, MemoryEstimate, Profile, Times

MEMORY_LABELS = {
    "base": "base weights",
    "constants": "constants",
    "method": "method",
    "head": "head",
    "optimizer": "optimizer",
    "persistent": "persistent",
    "inputs": "inputs",
    "activations": "activations",
    "gradients": "gradients",
    "retained": "retained",
    "transient": "transient",
    "peak": "peak",
    "best_state": "best state",
    "evaluation_peak": "evaluation",
    "reserved": "reserved",
    "process_peak": "process",
}


def profile_lines(profile: Profile) -> list[tuple[str, str]]:
    """Labels and texts that describe a profile."""
    flops = profile.flops
    texts = [
        ("batch", f"{profile.examples} x {profile.length} tokens, {profile.environment.precision}"),
        *memory_lines(profile.memory),
        (
            "FLOPs",
            f"per token: forward {flops.forward:.3g}, backward {flops.backward:.3g}; "
            f"a step costs {flops.ratio:.2f} forward passes",
        ),
    ]
    if profile.times is not None:
        texts.append(("step", _step(profile.times)))
    if profile.inference is not None:
        texts.append(("inference", _inference(profile.inference)))
    return texts


def memory_lines(memory: Memory) -> list[tuple[str, str]]:
    """Memory in MiB, one line per kind; zero and unknown ones are left out, except the peak."""
    return [
        (label, f"{value / MIB:,.2f} MiB")
        for name, label in MEMORY_LABELS.items()
        if (value := getattr(memory, name)) is not None and (value or name == "peak")
    ]


def _step(times: Times) -> str:
    return (
        f"{times.median:.3f} s, quartiles {times.quartiles[0]:.3f} to {times.quartiles[1]:.3f} of {times.steps} steps; "
        f"{times.tokens_per_second:,.0f} tokens/s; {times.matmul_fraction:.0%} of the "
        f"{times.matmul_flops_per_second / 1e9:,.0f} GFLOP/s of a large matmul"
    )


def _inference(inference: Inference) -> str:
    texts = [
        f"{name} {value:.3f} s"
        for name in ("unmerged", "merged", "base")
        if (value := getattr(inference, name)) is not None
    ]
    if inference.merge_error is not None:
        texts.append(f"merging changes an output by at most {inference.merge_error:.1e}")
    return ", ".join(texts)


def estimate_lines(estimate: MemoryEstimate, limit: int | None) -> list[tuple[str, str]]:
    """Labels and texts that describe an estimate; `limit` is the memory of a device in bytes."""
    if estimate.memory is None:
        return [("unsupported", str(estimate.unsupported))]
    memory = estimate.memory
    parts = {
        "weights": memory.base + memory.method + memory.head,
        "constants": memory.constants,
        "optimizer": memory.optimizer,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "transient": memory.transient,
        "peak": memory.peak,
        "needed": estimate.needed or 0,
    }
    hint = " (mostly bfloat16 on a GPU: --set training.precision=bfloat16)" if estimate.precision == "float32" else ""
    batch = f"{estimate.examples} x {estimate.length} tokens per step"
    if estimate.devices > 1:
        batch += f" on {estimate.devices} devices" + (" with a shard of the model each" if estimate.sharded else "")
    texts = [
        *((label, f"{size / MIB:,.0f} MiB") for label, size in parts.items() if size),
        *(("reach", sentence) for sentence in estimate.reach_sentences),
        ("precision", f"{estimate.precision}{hint}"),
        ("batch", f"{batch}: micro-batches of {estimate.micro_batch}, training.accumulation={estimate.accumulation}"),
    ]
    if limit is not None:
        verdict = "fits" if estimate.fits else "does not fit, even one example at a time"
        if estimate.at_least:
            verdict += " (the estimate is for two examples)"
        texts.append(("verdict", f"{verdict} in {limit / MIB:,.0f} MiB"))
    return texts
