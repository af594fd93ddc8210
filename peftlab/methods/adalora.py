"""AdaLoRA (Zhang et al., 2023): LoRA in singular value form; the least important triplets are pruned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.method import Method, MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.methods.targets import Targets, chosen_layers, left_out_remark

if TYPE_CHECKING:
    from peft import AdaLoraConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# PEFT's names for the importance of a parameter and the two running averages of it.
MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLora(PeftMethod):
    """LoRA that redistributes ranks between layers during training (AdaLoRA, Zhang et al., 2023).

    Computes W x + (alpha / initial_rank) B diag(E) A x. A triplet is a row of A, the matching column of B and element
    of E; a pruned triplet has E = 0. `target_rank` is the mean number of triplets per layer after the last pruning.
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
    added_fields: ClassVar[Mapping[str, Any]] = {"exclude": []}
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"initial_rank": 6, "target_rank": 3},)

    initial_rank: int = Field(12, ge=2, le=4096)
    """Rank of every layer before the first pruning."""
    target_rank: int = Field(8, ge=1)
    """Mean rank over all layers after the last pruning."""
    alpha: float = Field(32.0, gt=0)
    """Numerator of the scale alpha / initial_rank by which the update is multiplied."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the input of A."""
    targets: Targets = "all-linear"
    """Layers to adapt: `all-linear`, `attention` (query and value projections), or a list of names or patterns.

    A name is a full name or the end of one (`q_proj`, `self_attn.q_proj`); `*` in a pattern stands for any part of it
    (`language_model.*`). Layers that the task does not run are left out.
    """
    exclude: list[str] = Field(default=[], examples=[["vision_tower.*"]])
    """Names or patterns of layers that are not adapted, written as in `targets`."""
    before_pruning: float = Field(0.1, ge=0, lt=1)
    """Fraction of optimizer steps before the first pruning."""
    after_pruning: float = Field(0.3, ge=0, lt=1)
    """Fraction of optimizer steps after the last pruning."""
    pruning_interval: int = Field(10, ge=1)
    """Optimizer steps between two prunings."""
    orthogonality: float = Field(0.5, ge=0)
    """Weight of the penalty that keeps A and B orthogonal."""
    sensitivity_decay: float = Field(0.85, gt=0, lt=1)
    """Decay of the running average of a parameter's importance (beta1 of the paper)."""
    uncertainty_decay: float = Field(0.85, gt=0, lt=1)
    """Decay of the running average of the importance's deviation (beta2 of the paper)."""

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
        """Return this method with another initial rank and a target rank in the same ratio to it."""
        target = min(max(1, round(size * self.target_rank / self.initial_rank)), size - 1)
        return self.model_validate({**self.model_dump(), "initial_rank": size, "target_rank": target})

    def phases(self, steps: int) -> tuple[int, int]:
        """Optimizer steps before the first and after the last pruning. Raises UserError if fewer than two remain.

        >>> AdaLora().phases(100)
        (10, 30)
        """
        before, after = round(self.before_pruning * steps), round(self.after_pruning * steps)
        if steps - before - after < 2:
            raise UserError(
                f"method: AdaLoRA has {steps} optimizer steps, {before} before_pruning and {after} after_pruning: "
                "too few remain to prune in; train for longer"
            )
        return before, after

    @property
    def partial_by_choice(self) -> bool:
        return self.targets != "all-linear" or bool(self.exclude)

    def incompatible_with(self, context: MethodContext) -> str | None:
        if context.sharded or context.zero_stage is not None:
            return "AdaLoRA compares the singular values of full tensors, and each process holds only shards of them"
        if context.dispatched:
            return "AdaLoRA compares the singular values of all layers, which are on several GPUs"
        if context.averaged:
            return "AdaLoRA prunes by setting weights to 0 after a step, and an average over the steps undoes it"
        return super().incompatible_with(context)

    def cannot_start_from(self, earlier: Method) -> str | None:
        return super().cannot_start_from(earlier) or (
            "AdaLoRA ends with pruned ranks and starts with the full budget, so it cannot continue; merge the earlier "
            "run and give the result as model"
        )

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> AdaLoraConfig:
        from peft import AdaLoraConfig

        before, after = self.phases(plan.optimizer_steps)
        return AdaLoraConfig(
            task_type=plan.task_type,
            init_r=self.initial_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT multiplies by it, so a float is accepted
            lora_dropout=self.dropout,
            target_modules=self._layers(model, plan),
            exclude_modules=list(plan.head) or None,
            modules_to_save=list(plan.head) or None,
            total_step=plan.optimizer_steps,
            tinit=before,
            tfinal=after,
            deltaT=self.pruning_interval,
            beta1=self.sensitivity_decay,
            beta2=self.uncertainty_decay,
            orth_reg_weight=0.0,  # PEFT adds it to `outputs.loss` in every forward pass, evaluation included
        )

    def left_out(self, model: PreTrainedModel, plan: TrainingPlan) -> str | None:
        return left_out_remark(model, plan.head, plan.task_type) if self.targets == "all-linear" else None

    def _layers(self, model: PreTrainedModel, plan: TrainingPlan) -> list[str]:
        return chosen_layers(model, self.targets, plan.head, task_type=plan.task_type, exclude=self.exclude)

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        return _freeze_ranknum(super().apply(model, plan))

    def penalty(self, model: nn.Module) -> Tensor | None:
        """orthogonality * mean over all matrices P (A and B^T) of ||P P^T - I||_F, as in PEFT's forward pass."""
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
        # Before the last pruning there are more triplets than the budget allows.
        return step >= steps - round(self.after_pruning * steps)

    def after_step(self, model: nn.Module, step: int) -> None:
        adapters = {name: p for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad}
        dead = sorted({name.partition(".lora_")[0] for name, p in adapters.items() if p.grad is None})
        if dead:  # PEFT multiplies parameters by their gradients
            raise UserError(
                f"method: {len(dead)} of the layers that AdaLoRA adapts get no gradient, e.g. "
                f"{dead[0].removeprefix('base_model.model.')}; name them in method.exclude"
            )
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
            names = [key.removeprefix(f"{moment}.") for key in state if key.startswith(f"{moment}.")]
            setattr(
                model.base_model.rankallocator,  # type: ignore[union-attr]
                moment,
                {name: state[f"{moment}.{name}"].to(devices[name]) for name in names},
            )

    def save(self, model: nn.Module, folder: Path) -> None:
        config = _config(model)
        rank_pattern, weight = config.rank_pattern, config.orth_reg_weight
        if rank_pattern is not None:
            # Derive the pattern from the tensors: they may be an earlier checkpoint, or pruned triplets may have
            # grown again since the last pruning.
            config.rank_pattern = {
                name.removeprefix("base_model.model."): (values != 0).view(-1).tolist()
                for name, values in _singular_values(model).items()
            }
        config.orth_reg_weight = self.orthogonality
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*invalid shape")  # for layers pruned to rank 0
            super().save(model, folder)
        config.rank_pattern, config.orth_reg_weight = rank_pattern, weight

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        model = _freeze_ranknum(super().load(base, folder, trainable=trainable))
        # Otherwise PEFT's forward pass fails when given labels, or adds the penalty to the loss.
        model.base_model.trainable_adapter_name = "default"  # type: ignore[assignment]
        _config(model).orth_reg_weight = 0.0
        _restore_pruned_triplets(model, folder)
        return model

    def stats(self, model: nn.Module) -> dict[str, Any]:
        """Rank of each layer, and the number of adapter parameters before pruning and in the current state."""
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


def _freeze_ranknum(model: PeftModel) -> PeftModel:
    """Freeze the rank that PEFT divides by. Over a bfloat16 base model it would be trained, and it is not saved."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return model


def _restore_pruned_triplets(model: nn.Module, folder: Path) -> None:
    """Add the pruned triplets to a loaded adapter, as zeros, and copy the other values from the file.

    PEFT omits pruned triplets, which changes the rounding of sums in bfloat16, and casts the rest to the base's dtype.
    """
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    for name, alive in (_config(model).rank_pattern or {}).items():
        layer = f"base_model.model.{name.removesuffix('.lora_E')}"
        rows = torch.tensor([row for row, is_alive in enumerate(alive) if is_alive], dtype=torch.long)
        for part in ("lora_A", "lora_B", "lora_E"):
            saved = tensors[f"{layer}.{part}"]
            rank_axis = 1 if part == "lora_B" else 0
            shape = [len(alive) if axis == rank_axis else size for axis, size in enumerate(saved.shape)]
            parameter = model.get_parameter(f"{layer}.{part}.default")
            parameter.data = saved.new_zeros(shape).index_copy(rank_axis, rows, saved).to(parameter.device)
