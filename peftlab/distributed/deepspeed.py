"""DeepSpeed's ZeRO: processes share out the optimiser's state and the gradients (stage 2), and the parameters too (3).

Rajbhandari et al., 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv:1910.02054. Its
engine takes the step; what it is given, what is kept of it and what is saved are the loop's.
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
from peftlab.quantization.quantization import quantized_linears

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_IN_FLIGHT = 500_000_000  # gradients that are sent at once, DeepSpeed's own
SWITCH, OPTIONS = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_"  # set by `accelerate launch`


@dataclass(frozen=True)
class ZeroSettings:
    """What the launcher asked for."""

    stage: int

    @classmethod
    def from_env(cls, environment: MutableMapping[str, str] = os.environ) -> ZeroSettings | None:
        """What is asked for, from now on not Accelerate's to do. Raises UserError for what is not done here."""
        if environment.get(SWITCH, "").lower() not in ("1", "true"):
            return None
        if environment.get(f"{OPTIONS}CONFIG_FILE", "none") not in ("", "none"):
            raise UserError("DeepSpeed: deepspeed_config_file is not read: the recipe says what it would; leave it out")
        stage = environment.get(f"{OPTIONS}ZERO_STAGE", "2")
        if stage not in ("2", "3"):
            raise UserError(f"DeepSpeed: zero_stage: {stage}: 2 or 3 was expected; copies are ddp.yaml's")
        for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE"):
            if environment.get(f"{OPTIONS}{name}", "none") not in ("", "none"):
                raise UserError(f"DeepSpeed: {name.lower()} is not done here: quantization: nf4 makes shares smaller")
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError("DeepSpeed is not installed: pip install deepspeed, or launch with fsdp2.yaml")
        del environment[SWITCH]
        return cls(int(stage))

    def make_optimizer_step(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        clip: float | None,
        precision: Precision,
    ) -> ZeroOptimizerStep:
        """Share out `model`, which every process has whole and alike, and what `optimizer` will keep of it."""
        os.environ.setdefault("DS_ACCELERATOR", accelerator.device.type)
        import deepspeed

        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # it scales nothing here: the loss is a sum's share already
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip or 0.0,
            "zero_optimization": {
                "stage": self.stage,
                "stage3_param_persistence_threshold": 0,
                "reduce_bucket_size": min(trained, MOST_IN_FLIGHT),  # held from the first step on, full or not
            },
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {
                "enabled": precision == "bfloat16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # parameters and gradients travel as they are
            },
            "communication_data_type": "fp32",
            "steps_per_print": 2**62,
        }
        if self.stage == 3:  # tensor by tensor, as the whole may be too large for a device
            _move_the_rest(model, accelerator.device)
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return ZeroOptimizerStep(model, optimizer, accelerator, engine)


def _move_the_rest(model: torch.nn.Module, device: torch.device) -> None:
    """What DeepSpeed leaves where it was when it shares out parameters: buffers, and the constants of 4-bit weights."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for linear in quantized_linears(model).values():
        if getattr(linear, "quant_state", None) is not None:
            linear.quant_state.to(device)  # in place: it is the weight's too


class ZeroOptimizerStep(OptimizerStep):
    """Weight decay reaches what no forward uses, too: the engine knows no parameter without a gradient."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, engine: Any
    ) -> None:
        self.engine = engine
        self.used: set[torch.nn.Parameter] = set()
        super().__init__(model, optimizer, accelerator, None)
        for parameter in self.trainable:
            parameter.register_post_accumulate_grad_hook(self.used.add)

    def wrap_ddp(self, model: torch.nn.Module) -> torch.nn.Module:
        whole: torch.nn.Module = self.engine
        return whole

    def no_sync_context(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter) if parameter in self.used else None

    def step(self) -> float:
        self.engine.step()  # which leaves everything as it is where the norm is not finite
        return float(self.engine.get_global_grad_norm())

    def zero_grad(self) -> None:
        """The engine has forgotten them."""

    def unused(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.trainable if parameter not in self.used]

    def state(self) -> dict[str, Tensor]:
        from accelerate.utils import gather_object

        rank = self.accelerator.process_index
        mine = {
            f"{rank}.{number}.{name}": value.detach().cpu()
            for number, share in enumerate(self._shares)
            for name, value in self.optimizer.state[share].items()
        }
        used = torch.tensor([parameter in self.used for parameter in self.trainable])
        return {name: value for found in gather_object([mine]) for name, value in found.items()} | {"used": used}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.engine.optimizer.refresh_fp32_params()
        for name, tensor in tensors.items():
            rank, _, rest = name.partition(".")
            if rank == str(self.accelerator.process_index):
                number, _, key = rest.partition(".")
                share = self._shares[int(number)]
                # The count of steps stays on the CPU, but for the fused optimiser.
                there = tensor.dim() > 0 or self.optimizer.defaults.get("fused")
                self.optimizer.state[share][key] = tensor.to(share.device) if there else tensor
        self.used.update(p for p, used in zip(self.trainable, tensors["used"].tolist(), strict=True) if used)

    @property
    def _shares(self) -> list[Tensor]:
        """What the optimiser steps: of each group of parameters this process's share, one after the other."""
        zero = self.engine.optimizer
        found: list[Tensor] = (
            zero.fp32_partitioned_groups_flat
            if hasattr(zero, "fp32_partitioned_groups_flat")
            else zero.single_partition_of_fp32_groups
        )
        return found
