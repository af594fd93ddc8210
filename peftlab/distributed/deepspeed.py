"""DeepSpeed ZeRO: optimizer state and gradients are sharded over the processes (stage 2), and parameters too (stage 3).

Rajbhandari et al., 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv:1910.02054.
DeepSpeed's engine performs the optimizer step; the training loop does everything else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftlab.component import Precision
from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.errors import UserError
from peftlab.quantization.quantization import bitsandbytes_linears

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_BUCKET_SIZE = 500_000_000
"""DeepSpeed's default number of gradient elements that are reduced at once."""
SWITCH, OPTIONS = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_"
"""Environment variable, and prefix of environment variables, set by `accelerate launch`."""


@dataclass(frozen=True)
class ZeroSettings:
    """DeepSpeed settings of the launcher."""

    stage: int
    """ZeRO stage, 2 or 3."""

    @classmethod
    def from_env(cls, environment: MutableMapping[str, str] = os.environ) -> ZeroSettings | None:
        """Read the settings and remove the switch from `environment`, so that Accelerate does not use DeepSpeed.

        Raises UserError for unsupported settings.
        """
        if environment.get(SWITCH, "").lower() not in ("1", "true"):
            return None
        if environment.get(f"{OPTIONS}CONFIG_FILE", "none") not in ("", "none"):
            raise UserError(
                "DeepSpeed: deepspeed_config_file is not supported: the recipe holds these settings; remove it"
            )
        stage = environment.get(f"{OPTIONS}ZERO_STAGE", "2")
        if stage not in ("2", "3"):
            raise UserError(f"DeepSpeed: zero_stage: {stage}: expected 2 or 3; for replicas use ddp.yaml")
        for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE"):
            if environment.get(f"{OPTIONS}{name}", "none") not in ("", "none"):
                raise UserError(f"DeepSpeed: {name.lower()} is not supported: use quantization: nf4 instead")
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError("DeepSpeed is not installed: pip install deepspeed, or launch with fsdp2.yaml")
        del environment[SWITCH]
        return cls(int(stage))

    def make_optimizer_step(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        *,
        clip: float | None,
        precision: Precision,
    ) -> ZeroOptimizerStep:
        """Shard `model` and the state of `optimizer`. Every process must hold the same full model."""
        os.environ.setdefault("DS_ACCELERATOR", accelerator.device.type)
        import deepspeed

        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # has no effect: the loop scales the loss itself
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip or 0.0,
            "zero_optimization": {
                "stage": self.stage,
                "stage3_param_persistence_threshold": 0,
                "reduce_bucket_size": min(trained, MAX_BUCKET_SIZE),  # allocated in full at the first step
            },
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {
                "enabled": precision == "bfloat16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # communicate parameters and gradients in their own dtype
            },
            "communication_data_type": "fp32",
            "steps_per_print": 2**62,
        }
        if self.stage == 3:  # one tensor at a time, because the full model may not fit on a device
            _move_buffers(model, accelerator.device)
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return ZeroOptimizerStep(model, optimizer, accelerator, engine)


def _move_buffers(model: torch.nn.Module, device: torch.device) -> None:
    """Move what DeepSpeed does not when it shards parameters: buffers, and the quantization state of 4-bit weights."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for linear in bitsandbytes_linears(model).values():
        if getattr(linear, "quant_state", None) is not None:
            linear.quant_state.to(device)  # in place: the weight refers to the same object


class ZeroOptimizerStep(OptimizerStep):
    """Optimizer step of DeepSpeed's engine. Weight decay also applies to parameters that never receive a gradient."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, engine: Any
    ) -> None:
        self.engine = engine
        self.used: set[torch.nn.Parameter] = set()
        super().__init__(model, optimizer, accelerator, clip=None)
        for parameter in self.trainable:
            parameter.register_post_accumulate_grad_hook(self.used.add)

    def wrap_ddp(self, model: torch.nn.Module) -> torch.nn.Module:
        module: torch.nn.Module = self.engine
        return module

    def no_sync_context(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter) if parameter in self.used else None

    def step(self) -> float:
        self.engine.step()  # updates nothing if the norm is not finite
        return float(self.engine.get_global_grad_norm())

    def zero_grad(self) -> None:
        """Do nothing: the engine has cleared the gradients in its step."""

    def unused(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.trainable if parameter not in self.used]

    def state(self) -> dict[str, Tensor]:
        from accelerate.utils import gather_object

        rank = self.accelerator.process_index
        local_state = {
            f"{rank}.{number}.{name}": value.detach().cpu()
            for number, partition in enumerate(self._partitions)
            for name, value in self.optimizer.state[partition].items()
        }
        used = torch.tensor([parameter in self.used for parameter in self.trainable])
        states = gather_object([local_state])
        return {name: value for state in states for name, value in state.items()} | {"used": used}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.engine.optimizer.refresh_fp32_params()
        for name, tensor in tensors.items():
            rank, _, rest = name.partition(".")
            if rank == str(self.accelerator.process_index):
                number, _, key = rest.partition(".")
                partition = self._partitions[int(number)]
                # The step count stays on the CPU, except for a fused optimizer.
                on_device = tensor.dim() > 0 or self.optimizer.defaults.get("fused")
                self.optimizer.state[partition][key] = tensor.to(partition.device) if on_device else tensor
        self.used.update(p for p, used in zip(self.trainable, tensors["used"].tolist(), strict=True) if used)

    @property
    def _partitions(self) -> list[Tensor]:
        """Tensors that the optimizer updates: this process's partition of each parameter group, flattened."""
        zero = self.engine.optimizer
        partitions: list[Tensor] = (
            zero.fp32_partitioned_groups_flat
            if hasattr(zero, "fp32_partitioned_groups_flat")
            else zero.single_partition_of_fp32_groups
        )
        return partitions
