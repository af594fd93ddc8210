"""(IA)^3 (Liu et al., 2022): learned vectors that scale keys, values and the inside of the feed-forward block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.methods.targets import linear_layers, named_layers
from peftlab.models.fact_types import matching
from peftlab.models.facts import facts_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel


class Ia3(PeftMethod):
    """Trains vectors that scale keys, values and feed-forward activations ((IA)^3, Liu et al., 2022).

    Each layer has d_key + d_value + d_feed_forward parameters, initialized to one, so the base model is unchanged.
    """

    kind: Literal["ia3"] = "ia3"
    title: ClassVar[str] = "IA3"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="liu2022ia3",
            author="Liu, Haokun and others",
            title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
            year=2022,
            arxiv="2205.05638",
        ),
    )
    fidelity: ClassVar[str | None] = (
        "where one projection makes queries, keys and values (GPT-2, GPT-NeoX, Phi-3), the queries are scaled too"
    )
    learning_rate: ClassVar[float] = 5e-3
    merges: ClassVar[bool] = True

    targets: Literal["paper"] | list[str] = "paper"
    """`paper` for the layers of the publication, or a list of names of linear layers whose output is scaled."""
    input_targets: list[str] = Field(default=[], examples=[["output.dense"]])
    """Names of linear layers whose input is scaled. Only together with a list of `targets`."""

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        if self.targets == "paper" and self.input_targets:
            raise ValueError("input_targets requires a list of targets, not 'paper'")
        if not self.targets and not self.input_targets:
            raise ValueError("targets and input_targets are both empty: nothing would be scaled")
        return self

    @property
    def partial_by_choice(self) -> bool:
        return True  # it scales keys, values and the inside of the feed-forward block

    def incompatible_with(self, context: MethodContext) -> str | None:
        if self.targets != "paper" or context.architecture is None:
            return None
        return _unknown_places(context.architecture)

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft import IA3Config

        if self.targets == "paper":
            architecture = model.config.model_type
            if (reason := _unknown_places(architecture)) is not None:
                raise UserError(f"method.targets: {reason}")
            facts, layers = facts_of(architecture), linear_layers(model, plan.head)
            keys_and_values = matching(layers, facts.keys_and_values)
            feed_forward = matching(layers, facts.inside_feed_forward)
        else:
            keys_and_values = named_layers(model, self.targets, plan.head)
            feed_forward = named_layers(model, self.input_targets, plan.head)
        return IA3Config(
            task_type=plan.task_type,
            target_modules=[*keys_and_values, *feed_forward],
            feedforward_modules=feed_forward,
            exclude_modules=list(plan.head) or None,
            modules_to_save=list(plan.head) or None,
        )

    def left_out(self, model: PreTrainedModel, plan: TrainingPlan) -> str | None:
        if self.targets != "paper" or facts_of(model.config.model_type).inside_feed_forward:
            return None
        return "no feed-forward block is scaled: none ends in a linear layer (experts are 3-D parameters)"

    def merge(self, model: nn.Module) -> nn.Module:
        from peft.utils.other import ModulesToSaveWrapper

        # PEFT's merge of IA3 copies `weight` from a trained head, and ModernBERT's is a module of several layers.
        for name, module in list(model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                owner, _, child = name.rpartition(".")
                setattr(model.get_submodule(owner), child, module.modules_to_save[module.active_adapters[0]])
        return super().merge(model)

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Exclude the scales from weight decay: their neutral value is one, not zero."""
        groups = super().parameter_groups(model, learning_rate, weight_decay)
        scales = [p for name, p in model.named_parameters() if ".ia3_l." in name and p.requires_grad]
        scale_ids = {id(p) for p in scales}
        others = [{**group, "params": [p for p in group["params"] if id(p) not in scale_ids]} for group in groups]
        return [*others, {"params": scales, "lr": learning_rate, "weight_decay": 0.0}]


def _unknown_places(architecture: str) -> str | None:
    facts = facts_of(architecture)
    if facts.keys_and_values:
        return None
    return (
        f"no layers that make keys and values are known for {architecture!r} ({facts.reason('keys_and_values')}); "
        "set targets and input_targets, or use lora"
    )
