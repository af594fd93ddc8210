"""A CUDA device simulated in CPU memory: the product's GPU code runs on a CPU build of torch.

It shows devices, dtypes, autocast and host synchronization. It does not show the results of CUDA kernels, memory,
speed, streams or several processes: nothing that runs on it has run on a GPU.
"""

from __future__ import annotations

import collections
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("simulated_cuda.cpp")
CACHE = Path.home() / ".cache" / "peftlab" / "simulated_cuda"
MEMORY = 24 << 30  # bytes that each device reports
calls: collections.Counter[str] = collections.Counter()
"""Calls of functions of torch.cuda that wait for the device."""


class CannotBuildError(Exception):
    """The library does not compile here; the compiler's message."""


def build() -> Path:
    """Path of the compiled library, cached by torch's version and the source. Raises CannotBuildError."""
    version = importlib.metadata.version("torch")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = CACHE / f"{version}-{digest}.so"
    if library.exists():
        return library
    compiler = shutil.which("g++")
    if compiler is None:
        raise CannotBuildError("no g++")
    CACHE.mkdir(parents=True, exist_ok=True)
    torch = _torch_folder()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        output = Path(folder) / "library.so"
        words = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", str(SOURCE)]
        words += ["-o", str(output), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise CannotBuildError(done.stderr[-4000:])
        output.replace(library)
    return library


def install() -> None:
    """Simulate one GPU in this process, which must not have imported torch. Raises CannotBuildError."""
    global _library
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes' compiled kernels would read the memory as a GPU's
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    _library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    import bitsandbytes  # noqa: F401  # before CUDA appears: it looks for its CUDA kernels on import

    _library.simulate_namespace(b"bitsandbytes")
    _replace_torch_cuda()
    _copy_storages()
    _add_lstm_cell()
    set_devices(1)


def set_devices(count: int, *, bfloat16: bool = True) -> None:
    """Set the number of GPUs, and whether they compute in bfloat16 (Ampere and later) or not (Turing)."""
    import torch

    cuda: Any = torch.cuda
    _library.simulate_devices(count)
    cuda.is_available = lambda: count > 0
    cuda.device_count = lambda: count
    cuda.get_device_capability = lambda device=None: (9, 0) if bfloat16 else (7, 5)
    cuda.is_bf16_supported = lambda including_emulation=True: bfloat16 or including_emulation
    cuda.default_generators = tuple(torch.Generator() for _ in range(count))
    torch.version.cuda = "13.0" if count else None
    torch.amp.autocast_mode._cuda_available = count > 0  # type: ignore[attr-defined]


_library: Any = None


def _torch_folder() -> Path:
    """Folder of torch, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _counted(name: str) -> Any:
    def function(*arguments: Any, **keywords: Any) -> None:
        calls[name] += 1

    return function


def _replace_torch_cuda() -> None:
    """Answer for the parts of torch.cuda that ask a driver."""
    import torch
    import torch.cuda.amp.common

    cuda: Any = torch.cuda
    bindings: Any = torch._C
    properties = {"name": "simulated GPU", "major": 9, "minor": 0, "total_memory": MEMORY}
    properties |= {"multi_processor_count": 100, "gcnArchName": ""}
    replacements: dict[str, Any] = {
        "_is_compiled": lambda: True,
        "_lazy_init": lambda: None,
        "current_device": lambda: _current[0],
        "current_stream": _Stream,
        "default_stream": _Stream,
        "device": _Device,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "simulated GPU",
        "get_device_properties": lambda device=None: types.SimpleNamespace(**properties),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "init": lambda: None,
        "is_initialized": lambda: True,
        "manual_seed": lambda seed: None,  # the device draws from the CPU's generator
        "manual_seed_all": lambda seed: None,
        "max_memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "memory_stats": lambda device=None: dict.fromkeys(
            ("requested_bytes.all.current", "requested_bytes.all.peak"), 0
        ),
        "reset_peak_memory_stats": lambda device=None: None,
        "set_device": lambda device: _current.__setitem__(0, _index(device)),
        "set_rng_state": lambda state, device=None: None,
        "synchronize": _counted("synchronize"),
    }
    for name, replacement in replacements.items():
        setattr(cuda, name, replacement)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    bindings._cuda_getDriverVersion = lambda: 13000
    bindings._cuda_getCurrentRawStream = lambda device: 0


_current = [0]


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    import torch

    index = None if device is None else torch.device(device).index
    return _current[0] if index is None else index


class _Stream:
    """A stream whose work is always done."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.device_index = 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def synchronize(self, *arguments: Any) -> None:
        pass

    wait_stream = wait_event = record_event = synchronize


class _Device:
    """`torch.cuda.device`: the current device within a context."""

    def __init__(self, device: Any) -> None:
        self.index = self.previous = _index(device)

    def __enter__(self) -> None:
        self.previous, _current[0] = _current[0], self.index

    def __exit__(self, *error: object) -> None:
        _current[0] = self.previous


def _copy_storages() -> None:
    """Copy CUDA storages by an operator: their own copy, which deepcopy calls, exists in CUDA builds only."""
    import torch
    from torch.storage import UntypedStorage, _StorageBase

    clone = _StorageBase.clone

    def clone_storage(storage: Any) -> Any:
        if storage.device.type != "cuda":
            return clone(storage)
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return source.clone().untyped_storage()

    _StorageBase.clone = UntypedStorage.clone = clone_storage  # type: ignore[method-assign]


def _add_lstm_cell() -> None:
    """Add the LSTM cell that torch calls on CUDA only, and its gradient."""
    import torch

    global _operators
    _operators = torch.library.Library("aten", "IMPL")

    def forward(inputs: Any, hidden: Any, cell: Any, input_bias: Any = None, hidden_bias: Any = None) -> Any:
        gates = inputs + hidden + sum(bias for bias in (input_bias, hidden_bias) if bias is not None)
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new_cell = f * cell + i * g
        return o * new_cell.tanh(), new_cell, torch.cat([i, f, g, o], 1)

    def backward(d_hidden: Any, d_cell: Any, cell: Any, new_cell: Any, gates: Any, has_bias: bool) -> Any:
        i, f, g, o = gates.chunk(4, 1)
        tanh = new_cell.tanh()
        d_hidden = torch.zeros_like(new_cell) if d_hidden is None else d_hidden
        d_cell = (0 if d_cell is None else d_cell) + d_hidden * o * (1 - tanh * tanh)
        d_gates = [d_cell * g * i * (1 - i), d_cell * cell * f * (1 - f), d_cell * i * (1 - g * g)]
        together = torch.cat([*d_gates, d_hidden * tanh * o * (1 - o)], 1)
        return together, d_cell * f, together.sum(0) if has_bias else together.new_empty(0)

    _operators.impl("_thnn_fused_lstm_cell", forward, "CUDA")
    _operators.impl("_thnn_fused_lstm_cell_backward_impl", backward, "CUDA")


_operators: Any = None
