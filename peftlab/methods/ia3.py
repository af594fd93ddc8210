"""(IA)^3 (Liu et al., 2022): learned vectors that scale keys, values and the inside of the feed-forward block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.methods.targets import named_layers

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

# Linear layers whose outputs are keys and values, and the linear layer after the feed-forward activation. PEFT's own
# table scales queries instead of keys in some architectures, and in BERT also the input of the attention output.
_BERT = (("key", "value"), ("output.dense",))
_BART = (("k_proj", "v_proj"), ("fc2",))
_LLAMA = (("k_proj", "v_proj"), ("down_proj",))
_NEOX = (("query_key_value",), ("dense_4h_to_h",))
_T5 = (("k", "v"), ("wo",))
SCALED_LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "albert": (("key", "value"), ("ffn_output",)),
    "bart": _BART,
    "bert": _BERT,
    "bloom": _NEOX,
    "camembert": _BERT,
    "deberta-v2": (("key_proj", "value_proj"), ("output.dense",)),
    "distilbert": (("k_lin", "v_lin"), ("lin2",)),
    "electra": _BERT,
    "falcon": _NEOX,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": (("attn.c_attn",), ("mlp.c_proj",)),
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mbart": _BART,
    "mistral": _LLAMA,
    "modernbert": (("attn.Wqkv",), ("mlp.Wo",)),
    "mt5": _T5,
    "opt": _BART,
    "phi": _BART,
    "phi3": (("qkv_proj",), ("down_proj",)),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "t5": _T5,
    "xlm-roberta": _BERT,
}


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
        if self.targets != "paper" or context.architecture is None or context.architecture in SCALED_LAYERS:
            return None
        return _unknown_architecture(context.architecture)

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft import IA3Config

        outputs, inputs = self.targets, self.input_targets
        if outputs == "paper":
            architecture = model.config.model_type
            if architecture not in SCALED_LAYERS:
                raise UserError(f"method.targets: {_unknown_architecture(architecture)}")
            outputs, inputs = map(list, SCALED_LAYERS[architecture])
        keys_and_values = named_layers(model, outputs, plan.head)
        feed_forward = named_layers(model, inputs, plan.head)
        if self.targets == "paper":  # in BERT the last layer of both sublayers is called output.dense
            feed_forward = [name for name in feed_forward if ".attention." not in name]
        return IA3Config(
            task_type=plan.task_type,
            target_modules=[*keys_and_values, *feed_forward],
            feedforward_modules=feed_forward,
            exclude_modules=list(plan.head) or None,
            modules_to_save=list(plan.head) or None,
        )

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Exclude the scales from weight decay: their neutral value is one, not zero."""
        groups = super().parameter_groups(model, learning_rate, weight_decay)
        scales = [p for name, p in model.named_parameters() if ".ia3_l." in name and p.requires_grad]
        scale_ids = {id(p) for p in scales}
        others = [{**group, "params": [p for p in group["params"] if id(p) not in scale_ids]} for group in groups]
        return [*others, {"params": scales, "lr": learning_rate, "weight_decay": 0.0}]


def _unknown_architecture(architecture: str) -> str:
    return (
        f"the layers that IA3 scales are not known for {architecture!r}; set targets and input_targets, or use one of "
        f"{', '.join(SCALED_LAYERS)}"
    )
