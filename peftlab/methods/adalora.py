"""AdaLoRA (Zhang et al., 2023): LoRA as a singular value decomposition whose least important triplets are pruned."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.methods.targets import Targets, chosen_layers

if TYPE_CHECKING:
    from peft import AdaLoraConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's names of a parameter's importance and its two averages


class AdaLora(PeftMethod):
    """W x + (alpha / initial_rank) B diag(E) A x. Ranks move to the layers that use them: target_rank is their mean.

    A triplet is a row of A, a column of B and the number of E between; pruned, its E is zero.
    """

    kind: Literal["adalora"] = "adalora"
    title: ClassVar[str] = "AdaLoRA"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="zhang2023adalora",
            author="Zhang, Qingru and others",
            title="AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
            year=2023,
            arxiv="2303.10512",
        ),
    )
    fidelity: ClassVar[str | None] = (
        "the orthogonality penalty is PEFT's, the mean of the matrices' norms (paper: the sum of their squares)"
    )
    learning_rate: ClassVar[float] = 1e-3
    merges: ClassVar[bool] = True
    size_setting: ClassVar[str | None] = "initial_rank"
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"initial_rank": 6, "target_rank": 3},)

    initial_rank: int = Field(12, ge=2, le=4096)
    target_rank: int = Field(8, ge=1)  # mean over layers at the end
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Targets = "all-linear"
    before_pruning: float = Field(0.1, ge=0, lt=1)  # fraction of optimiser steps at the initial rank
    after_pruning: float = Field(0.3, ge=0, lt=1)  # fraction of optimiser steps at the final ranks
    pruning_interval: int = Field(10, ge=1)  # optimiser steps
    orthogonality: float = Field(0.5, ge=0)  # weight of the penalty that keeps A and B orthogonal
    sensitivity_decay: float = Field(0.85, gt=0, lt=1)  # of the running mean of importance
    uncertainty_decay: float = Field(0.85, gt=0, lt=1)  # of the running mean of its spread

    @model_validator(mode="after")
    def _something_to_prune(self) -> Self:
        if self.target_rank >= self.initial_rank:
            raise ValueError(
                f"target_rank: {self.target_rank} is not below initial_rank {self.initial_rank}: nothing to prune"
            )
        if self.before_pruning + self.after_pruning >= 1:
            raise ValueError(
                f"before_pruning {self.before_pruning} + after_pruning {self.after_pruning}: no steps left to prune in"
            )
        return self

    def resized(self, size: int) -> Self:
        """The target rank keeps its ratio to the initial one."""
        target = min(max(1, round(size * self.target_rank / self.initial_rank)), size - 1)
        return self.model_validate({**self.model_dump(), "initial_rank": size, "target_rank": target})

    def phases(self, steps: int) -> tuple[int, int]:
        """Optimiser steps before the first pruning and after the last one. Raises UserError if none is left between.

        >>> AdaLora().phases(100)
        (10, 30)
        """
        before, after = round(self.before_pruning * steps), round(self.after_pruning * steps)
        if steps - before - after < 2:
            raise UserError(
                f"method: AdaLoRA has {steps} optimiser steps, {before} before_pruning and {after} after_pruning: "
                "too few to prune in; train for longer"
            )
        return before, after

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if setting.sharded or setting.zero_stage is not None:
            return "AdaLoRA weighs singular values and prunes them by whole tensors, and each process has shares alone"
        if setting.dispatched:
            return "AdaLoRA weighs the singular values of all layers against each other, and they are on several GPUs"
        return super().incompatible_with(setting)

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> AdaLoraConfig:
        from peft import AdaLoraConfig

        before, after = self.phases(plan.optimizer_steps)
        return AdaLoraConfig(
            task_type=plan.task_type,
            init_r=self.initial_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT multiplies by it, so a float serves
            lora_dropout=self.dropout,
            target_modules=chosen_layers(model, self.targets, plan.head),
            exclude_modules=list(plan.head) or None,
            modules_to_save=list(plan.head) or None,
            total_step=plan.optimizer_steps,
            tinit=before,
            tfinal=after,
            deltaT=self.pruning_interval,
            beta1=self.sensitivity_decay,
            beta2=self.uncertainty_decay,
            orth_reg_weight=0.0,  # PEFT adds it to `outputs.loss` at every forward, in evaluation too; see `penalty`
        )

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        return _freeze_rank_numbers(super().apply(model, plan))

    def penalty(self, model: nn.Module) -> Tensor | None:
        """orthogonality * mean over the matrices P in A, B of ||P P^T - I||_F, as PEFT's forward computes it."""
        import torch

        if self.orthogonality == 0:
            return None
        norms = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (".lora_A." in name or ".lora_B." in name):
                product = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
                norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
        return self.orthogonality * torch.stack(norms).mean()

    def selectable(self, step: int, steps: int) -> bool:
        # Before the last pruning there are more ranks than the budget allows.
        return step >= steps - round(self.after_pruning * steps)

    def after_step(self, model: nn.Module, step: int) -> None:
        model.base_model.update_and_allocate(step)  # type: ignore[union-attr,operator]

    def state(self, model: nn.Module) -> dict[str, Any]:
        allocator = model.base_model.rankallocator  # type: ignore[union-attr]
        moments = {
            f"{moment}.{name}": tensor for moment in MOMENTS for name, tensor in getattr(allocator, moment).items()
        }
        return {**moments, "rank_pattern": _config(model).rank_pattern}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        _config(model).rank_pattern = state["rank_pattern"]
        devices = {name: p.device for name, p in model.base_model.model.named_parameters()}  # type: ignore[union-attr]
        for moment in MOMENTS:
            known = {
                key.removeprefix(f"{moment}."): tensor for key, tensor in state.items() if key.startswith(f"{moment}.")
            }
            setattr(
                model.base_model.rankallocator,  # type: ignore[union-attr]
                moment,
                {name: tensor.to(devices[name]) for name, tensor in known.items()},
            )

    def save(self, model: nn.Module, folder: Path) -> None:
        config = _config(model)
        kept, weight = config.rank_pattern, config.orth_reg_weight
        if kept is not None:
            # Of the tensors as they are: they may be a better state of before the last pruning, and what a pruning
            # took may have grown back until the next.
            config.rank_pattern = {
                name.removeprefix("base_model.model."): (values != 0).view(-1).tolist()
                for name, values in _singular_values(model).items()
            }
        config.orth_reg_weight = self.orthogonality
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*invalid shape")  # of layers pruned to rank 0
            super().save(model, folder)
        config.rank_pattern, config.orth_reg_weight = kept, weight

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        model = _freeze_rank_numbers(super().load(base, folder, trainable=trainable))
        # Without these PEFT's forward fails when it is given labels, or adds the penalty to the loss.
        model.base_model.trainable_adapter_name = "default"  # type: ignore[assignment]
        _config(model).orth_reg_weight = 0.0
        _put_zeros_back(model, folder)
        return model

    def stats(self, model: nn.Module) -> dict[str, Any]:
        """Ranks by layer and adapter parameters, at the start and of the state that is kept."""
        ranks, initial, effective = {}, 0, 0
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        for name, values in _singular_values(model).items():
            layer = name.removeprefix("base_model.model.").partition(".lora_E.")[0]
            ranks[layer] = int((values != 0).sum())
            triplets = sum(sizes[name.replace(".lora_E.", f".lora_{part}.")] for part in "ABE")
            initial += triplets
            effective += triplets // len(values) * ranks[layer]
        return {
            "initial_rank": self.initial_rank,
            "target_rank": self.target_rank,
            "final_rank": round(sum(ranks.values()) / len(ranks), 3),
            "initial_parameters": initial,
            "effective_parameters": effective,
            "ranks": ranks,
        }


def _config(model: nn.Module) -> Any:
    return model.peft_config["default"]  # type: ignore[index]


def _singular_values(model: nn.Module) -> dict[str, Tensor]:
    """E (rank, 1) of each layer, by the parameter's full name."""
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_E.default" in name}


def _freeze_rank_numbers(model: PeftModel) -> PeftModel:
    """What PEFT divides by must not train: over a base in bfloat16 it would, and it is not saved."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return model


def _put_zeros_back(model: nn.Module, folder: Path) -> None:
    """Give a loaded adapter the triplets that were pruned, and the numbers that are in the file.

    PEFT leaves the pruned out, so that in bfloat16 sums round differently, and rounds the rest to the base's dtype.
    """
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    for name, kept in (_config(model).rank_pattern or {}).items():
        layer = f"base_model.model.{name.removesuffix('.lora_E')}"
        alive = torch.tensor([row for row, is_alive in enumerate(kept) if is_alive], dtype=torch.long)
        for part in ("lora_A", "lora_B", "lora_E"):
            saved = tensors[f"{layer}.{part}"]
            of_rank = 1 if part == "lora_B" else 0
            shape = [len(kept) if axis == of_rank else size for axis, size in enumerate(saved.shape)]
            parameter = model.get_parameter(f"{layer}.{part}.default")
            parameter.data = saved.new_zeros(shape).index_copy(of_rank, alive, saved).to(parameter.device)
