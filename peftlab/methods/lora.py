"""LoRA (Hu et al., 2021): a low-rank product B A beside each frozen weight, B zero at the start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.component import Reference
from peftlab.methods import pissa
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod, ready
from peftlab.methods.targets import Targets, chosen_layers

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel


class Lora(PeftMethod):
    """W x + (alpha / rank) B A x, with A (rank, in) and B (out, rank): rank * (in + out) parameters a layer."""

    kind: Literal["lora"] = "lora"
    title: ClassVar[str] = "LoRA"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="hu2021lora",
            author="Hu, Edward J. and others",
            title="LoRA: Low-Rank Adaptation of Large Language Models",
            year=2021,
            arxiv="2106.09685",
        ),
    )
    learning_rate: ClassVar[float] = 5e-4
    merges: ClassVar[bool] = True

    size_setting: ClassVar[str | None] = "rank"
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"rank": 4},
        {"rank": 4, "weight_decomposed": True},
        {"rank": 4, "rank_stabilized": True},
        {"rank": 4, "initialization": "pissa"},
    )

    rank: int = Field(16, ge=1, le=4096)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Targets = "all-linear"
    rank_stabilized: bool = False  # rsLoRA (Kalajdzievski, 2023): scale by alpha / sqrt(rank)
    weight_decomposed: bool = False  # DoRA (Liu et al., 2024): a trained magnitude a column beside the direction
    initialization: Literal["zero", "pissa"] = "zero"  # PiSSA (Meng et al., 2024): the weight's principal components
    b_rate_ratio: float = Field(1.0, gt=0, le=1e4)  # LoRA+ (Hayou et al., 2024): learning rate of B over that of A

    @property
    def modifies_base(self) -> bool:
        return self.initialization == "pissa"

    @property
    def trains_base(self) -> bool:
        return self.modifies_base  # which takes B A out of the weights: what bfloat16 rounds off is lost

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if self.initialization == "pissa" and setting.quantization != "none":
            return "PiSSA needs the singular values of an unquantised weight; use quantization: none"
        if self.weight_decomposed and setting.zero_stage == 3 and setting.quantization != "none":
            return "DoRA puts a tensor of its own in place of a quantised weight, which ZeRO-3 then has no share of"
        if self.initialization == "pissa" and self.weight_decomposed:
            return "PiSSA cannot be saved apart from the base together with weight_decomposed; use one of them"
        return None

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            task_type=plan.task_type,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides it, so a float serves
            lora_dropout=self.dropout,
            target_modules=chosen_layers(model, self.targets, plan.head),
            exclude_modules=list(plan.head) or None,
            modules_to_save=list(plan.head) or None,
            use_rslora=self.rank_stabilized,
            use_dora=self.weight_decomposed,
            init_lora_weights=True if self.initialization == "zero" else "pissa",
        )

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        if not self.modifies_base:
            return super().apply(model, plan)
        pissa.check_rank(model, chosen_layers(model, self.targets, plan.head), self.rank)
        wrapped = super().apply(model, plan)
        pissa.remember_start(wrapped)
        return wrapped

    @contextlib.contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        start = pissa.start_of(model)
        if start is None:
            with super().disabled(model):
                yield
            return
        # PiSSA's base lacks what A and B started with.
        trained = {name: p for name, p in model.named_parameters() if name in start}
        kept = {name: p.data for name, p in trained.items()}
        for name, p in trained.items():
            p.data = start[name]
        try:
            yield
        finally:
            for name, p in trained.items():
                p.data = kept[name]

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(model, learning_rate, weight_decay)
        if self.b_rate_ratio == 1.0:
            return groups
        faster = {id(p) for name, p in model.named_parameters() if ".lora_B." in name}
        split = []
        for group in groups:
            split.append({**group, "params": [p for p in group["params"] if id(p) not in faster]})
            split.append(
                {
                    **group,
                    "params": [p for p in group["params"] if id(p) in faster],
                    "lr": learning_rate * self.b_rate_ratio,
                }
            )
        return [group for group in split if group["params"]]

    def save(self, model: nn.Module, folder: Path) -> None:
        super().save(model, folder)
        if self.modifies_base:
            pissa.save_as_difference(model, folder)

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        if not self.modifies_base:
            return super().load(base, folder, trainable=trainable)
        return ready(pissa.load_difference(base, folder, rank=self.rank, alpha=self.alpha, trainable=trainable))
