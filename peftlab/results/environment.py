"""Environment of a run: code, libraries and hardware; and quiet libraries."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

from peftlab.component import Precision
from peftlab.results.run_result import Code, Environment, Hardware

LIBRARIES = (
    "peftlab", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "evaluate", "tokenizers",
    "safetensors", "numpy", "seqeval", "deepspeed", "hqq", "torchao",
)  # fmt: skip


def quiet_libraries() -> None:
    """Silence library messages that a user cannot act on. Call before the libraries are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of torch's profiler
    names = ("bitsandbytes", "transformers", "accelerate", "datasets", "torch.distributed", "huggingface_hub")
    for name in (*names, "torchao", "torch.utils._pytree"):  # torchao: kernels that it cannot load, its own enums
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)  # it sets its level itself
    noisy = r"(torch|torchao|transformers|peft|accelerate|bitsandbytes|datasets|hqq|numpy)\b"
    warnings.filterwarnings("ignore", module=noisy)
    if "transformers" in sys.modules:  # else it reads HF_HUB_DISABLE_PROGRESS_BARS at import
        import transformers

        transformers.utils.logging.disable_progress_bar()


def environment(
    device: str,
    precision: Precision,
    processes: int,
    *,
    sharded: bool = False,
    zero: int | None = None,
    device_map: str | None = None,
    attention: str | None = None,
) -> Environment:
    """The current environment. Environment variables are not recorded."""
    import torch

    # Only for a run on a GPU: the query initializes CUDA, which a forked process cannot.
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device == "cuda" else []
    return Environment(
        code=_code(),
        python=platform.python_version(),
        libraries={name: version for name in LIBRARIES if (version := _version(name))},
        hardware=Hardware(
            processor=processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            memory_bytes=_memory(),
            accelerators=accelerators,
            driver=_driver() if accelerators else None,
        ),
        device=device,
        precision=precision,
        attention=attention,
        processes=processes,
        sharded=sharded,
        zero=zero,
        device_map=device_map,
    )


def _driver() -> str:
    """Newest CUDA version that the GPU driver supports, e.g. 13.0."""
    import torch

    number = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # in CUDA builds
    return f"{number // 1000}.{number % 1000 // 10}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code() -> Code:
    """The commit of the checkout that peftlab runs from, if it runs from one."""
    folder = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (folder / ".git").exists() else None
    changes = git("status", "--porcelain", "--", "peftlab") if commit else None
    return Code(commit=commit, modified=None if changes is None else bool(changes))


def processor() -> str:
    """Name of the processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
