"""Bottleneck adapters (Houlsby et al., 2019; Pfeiffer et al., 2021; He et al., 2022) in a frozen base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.models.facts import facts_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


# Settings of a variant in its paper and in AdapterHub that differ from the defaults.
PUBLISHED: dict[str, dict[str, Any]] = {"houlsby": {"activation": "silu"}, "parallel": {"scaling": 4.0}}


class Adapter(PeftMethod):
    """Adds small two-layer networks to each transformer layer (bottleneck adapters, Houlsby et al., 2019).

    Computes hidden + scaling * up(activation(down(input))) before the residual sum of a sublayer. `input` is `hidden`
    (houlsby: after self-attention and after the feed-forward block), the output the layer would have (pfeiffer: after
    the feed-forward block) or the input of the sublayer (parallel: next to the feed-forward block).
    """

    kind: Literal["adapter"] = "adapter"
    title: ClassVar[str] = "Adapter"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="houlsby2019adapters",
            author="Houlsby, Neil and others",
            title="Parameter-Efficient Transfer Learning for NLP",
            year=2019,
            arxiv="1902.00751",
        ),
        Reference(
            key="pfeiffer2021adapterfusion",
            author="Pfeiffer, Jonas and others",
            title="AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
            year=2021,
            arxiv="2005.00247",
        ),
        Reference(
            key="he2022unified",
            author="He, Junxian and others",
            title="Towards a Unified View of Parameter-Efficient Transfer Learning",
            year=2022,
            arxiv="2110.04366",
        ),
    )
    fidelity: ClassVar[str | None] = (
        "placed as in AdapterHub, so without one after cross-attention; the up-projection starts at zero (Houlsby, "
        "Pfeiffer: near zero), so that training starts from the base exactly; layer norms are frozen unless "
        "train_layer_norms (Houlsby: trained)"
    )
    learning_rate: ClassVar[float] = 3e-4

    size_setting: ClassVar[str | None] = "bottleneck"

    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Placement: `houlsby` (two per layer), `pfeiffer` (one per layer) or `parallel` (to the feed-forward block)."""
    bottleneck: Annotated[int, Field(gt=0)] | None = Field(None, examples=[48])
    """Width of the bottleneck. Give either this or `reduction_factor`."""
    reduction_factor: Annotated[int, Field(gt=0)] | None = Field(None, examples=[16])
    """Model width divided by bottleneck width; 16 if neither is given."""
    activation: Literal["relu", "silu", "gelu"] = "relu"
    """Activation between the two projections; silu by default for houlsby."""
    scaling: float = 1.0
    """Factor on the adapter's output; 4 by default for parallel."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability on the bottleneck."""
    train_layer_norms: bool = False
    """Also train all layer norms of the base model. Each adapter holds its own copies."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        width = {} if settings.get("bottleneck") else {"reduction_factor": 16}
        return {**width, **PUBLISHED.get(str(settings.get("variant")), {}), **settings}

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if (self.bottleneck is None) == (self.reduction_factor is None):
            raise ValueError(
                f"adapter: give either bottleneck (got {self.bottleneck}) "
                f"or reduction_factor (got {self.reduction_factor})"
            )
        return self

    def resized(self, size: int) -> Self:
        return self.model_validate({**self.model_dump(), "bottleneck": size, "reduction_factor": None})

    @property
    def acts_on(self) -> str:
        return "layers"

    def incompatible_with(self, context: MethodContext) -> str | None:
        if context.architecture is None:
            return None
        facts = facts_of(context.architecture)
        for place in ("feed_forward", "attention") if self.variant == "houlsby" else ("feed_forward",):
            if not getattr(facts, place):
                reason = facts.reason(place, "sublayers")
                return (
                    f"adapter: no {place.replace('_', '-')} sublayer of {context.architecture} is known ({reason}); "
                    "use lora"
                )
        return None

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peftlab.methods.tuners.adapter import AdapterConfig, width_of

        return AdapterConfig(
            task_type=plan.task_type,
            variant=self.variant,
            bottleneck=self.width(width_of(model)),
            activation=self.activation,
            scaling=self.scaling,
            dropout=self.dropout,
            train_layer_norms=self.train_layer_norms,
            modules_to_save=list(plan.head) or None,
        )

    def width(self, hidden_size: int) -> int:
        """Width of the bottleneck in a model of width `hidden_size`.

        >>> Adapter(reduction_factor=16).width(768), Adapter(bottleneck=64).width(768)
        (48, 64)
        """
        if self.reduction_factor is not None:
            return max(1, hidden_size // self.reduction_factor)
        assert self.bottleneck is not None
        return self.bottleneck

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        import peftlab.methods.tuners.adapter  # noqa: F401 (registers the tuner with PEFT)

        return super().load(base, folder, trainable=trainable)
