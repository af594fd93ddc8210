"""Settings of the training loop, of checkpoints and of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from peftlab.component import Settings
from peftlab.optimizers import AnyOptimizer
from peftlab.optimizers.adamw import AdamW

Beta = Annotated[float, Field(ge=0, lt=1)]

SCHEDULE_KEYS: Mapping[str, tuple[str, ...]] = {
    "minimum_learning_rate": ("linear", "cosine", "wsd"),
    "decay_fraction": ("wsd",),
    "decay_shape": ("wsd",),
}
"""Key of `Training` -> the schedules that use it."""


class Training(Settings):
    """Settings of the training loop. A batch is what one optimizer step trains on, over all devices together."""

    added_fields: ClassVar[Mapping[str, Any]] = {
        "optimizer": {"kind": "adamw"},
        "minimum_learning_rate": 0.0,
        "decay_fraction": 0.1,
        "decay_shape": "1-sqrt",
        "attention": "auto",
    }

    epochs: float | None = Field(None, gt=0, le=10_000, examples=[3])
    """Passes over the training examples; a fraction is allowed. 3 if neither this nor `steps` is given."""
    steps: int | None = Field(None, ge=1, le=100_000_000, examples=[1000])
    """Number of optimizer steps, in place of `epochs`."""
    learning_rate: float | None = Field(None, gt=0, le=10, examples=[3e-4])
    """Peak learning rate, after the warm-up. null: the method's default (`peftlab list`)."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Learning rate after the warm-up: falls linearly or along a half cosine, or stays constant.

    wsd (warm-up, stable, decay): stays constant and falls over the last `decay_fraction` of the steps.
    """
    minimum_learning_rate: float = Field(0.0, ge=0, lt=1, examples=[0.1])
    """Learning rate at the end of the schedule, as a fraction of the peak. `schedule: constant` has none."""
    decay_fraction: float = Field(0.1, gt=0, le=1)
    """Fraction of the optimizer steps over which the learning rate of `schedule: wsd` falls."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    """Curve along which the learning rate of `schedule: wsd` falls; 1-sqrt: fast at first, then slowly."""
    warmup: float = Field(0.06, ge=0, lt=1)
    """Fraction of the optimizer steps over which the learning rate rises linearly to its peak."""
    batch_examples: int | None = Field(None, ge=1, examples=[32])
    """Most examples in a batch, over all devices and micro-batches together."""
    batch_tokens: int | None = Field(None, ge=8, examples=[1024])
    """Most tokens in a batch, padding included, in place of `batch_examples`. 1024 if neither is given."""
    accumulation: int = Field(1, ge=1, examples=[4])
    """Micro-batches into which each device splits its part of a batch (gradient accumulation).

    More of them need less memory and give the same update.
    """
    auto_micro_batch: bool = False
    """Out of memory, double `accumulation` and retry the same step, in place of ending the run. One process only."""
    optimizer: AnyOptimizer = Field(AdamW(), examples=["adamw_8bit"])
    """Update rule of the trained parameters: its kind, or a mapping with its settings."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """Decoupled weight decay, per step and unit of learning rate. Biases and norms are not decayed."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of Adam's running averages of the gradient and of its square. Adafactor has none."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Term added to Adam's denominator. Adafactor has none."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient over all trained parameters; a larger one is scaled down. null: no clipping."""
    dropout: float | None = Field(0.0, ge=0, lt=1)
    """Dropout probability in the base model, of which no layer is left out. null: as in its config. A method may have a
    dropout setting of its own."""
    evaluate_every: int | None = Field(None, ge=1, examples=[100])
    """Optimizer steps between two evaluations on the validation split. null: at the end of each epoch."""
    patience: int | None = Field(None, ge=1, examples=[3])
    """Stop after this many evaluations without a better score. null: train to the end."""
    keep_best: bool = True
    """End with the weights of the best evaluation, not with those of the last step."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of forward and backward passes. auto: bfloat16 where the device computes in it natively, else float32.

    What is trained is held in float32 in any case.
    """
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention kernel, by transformers' names. auto: the model's own, or on a CPU the faster of eager and sdpa.

    auto measures both once per machine and shape of a batch, and the result records the kernel.
    """
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass in place of keeping them: less memory, more time."""
    layer_decay: float | None = Field(None, gt=0, le=1, examples=[0.9])
    """Ratio of a layer's learning rate to that of the layer above it. null: the same rate for all layers."""
    adversarial: float | None = Field(None, gt=0)
    """Norm of FGM's adversarial perturbation of an example's embeddings. null: none. It doubles the time of a step."""
    embedding_noise: float | None = Field(None, gt=0, examples=[5.0])
    """NEFTune's alpha: scale of the uniform noise on the embeddings in training. null: no noise."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Training:
        for one, other in (("epochs", "steps"), ("batch_examples", "batch_tokens")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"give {one} or {other}, not both (null unsets one)")
        return self

    @model_validator(mode="after")
    def _schedule_uses_its_keys(self) -> Training:
        fields = type(self).model_fields
        for key, schedules in SCHEDULE_KEYS.items():
            if getattr(self, key) != fields[key].default and self.schedule not in schedules:
                raise ValueError(
                    f"{key}: schedule: {self.schedule} does not use it; remove it, or set schedule: "
                    f"{' or '.join(schedules)}"
                )
        if self.schedule == "wsd" and self.warmup + self.decay_fraction > 1:
            raise ValueError(f"warmup {self.warmup:g} + decay_fraction {self.decay_fraction:g}: more than all steps")
        return self

    @model_validator(mode="after")
    def _optimizer_uses_its_keys(self) -> Training:
        fields, optimizer = type(self).model_fields, self.optimizer
        for key in () if optimizer.uses_betas else ("adam_betas", "adam_epsilon"):
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}: optimizer: {optimizer.kind} does not use it; remove it")
        if optimizer.averages and self.schedule != "constant":
            raise ValueError(
                f"schedule: {self.schedule}: optimizer: {optimizer.kind} averages the weights in place of a learning "
                "rate that falls; set schedule: constant (the warm-up stays)"
            )
        return self

    @property
    def passes(self) -> float:
        """Number of epochs, if `steps` is not given."""
        return 3.0 if self.epochs is None else self.epochs

    @property
    def batch(self) -> dict[str, int | None]:
        """Limits of a batch, as arguments of `epoch_batches`."""
        tokens = 1024 if self.batch_examples is None and self.batch_tokens is None else self.batch_tokens
        return {"examples": self.batch_examples, "tokens": tokens}


class CheckpointPolicy(Settings):
    """How often checkpoints are saved, and how many are kept. Not part of a recipe: it does not affect the result."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps between two checkpoints."""
    minutes: float | None = Field(10.0, gt=0)
    """Minutes between two checkpoints."""
    keep_last: int = Field(2, ge=1)
    """Number of newest checkpoints that are kept."""


class Seeds(Settings):
    """One seed per source of randomness, so that methods can be compared on the same batches."""

    initialization: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial values of the head and of the method's parameters."""
    data_order: int = Field(0, ge=0, lt=2**63)
    """Seed of the order of the training examples."""
    dropout: int = Field(0, ge=0, lt=2**63)
    """Seed of dropout masks and of the noise on embeddings."""


def _expand(seed: object) -> object:
    """One number is the seed of all three."""
    if isinstance(seed, int) and not isinstance(seed, bool):
        return {"initialization": seed, "data_order": seed, "dropout": seed}
    return seed


AnySeeds = Annotated[Seeds, BeforeValidator(_expand, json_schema_input_type=Seeds | int)]
