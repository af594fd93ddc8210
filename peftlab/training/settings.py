"""How long, how fast and how exactly a recipe trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from peftlab.component import Settings

Beta = Annotated[float, Field(ge=0, lt=1)]


class Training(Settings):
    """The loop's settings. A batch is all that one optimiser step sees, on all devices together."""

    epochs: float | None = Field(
        None, gt=0, le=10_000
    )  # passes over the training examples; 3 if neither this nor steps is given
    steps: int | None = Field(None, ge=1, le=100_000_000)  # optimiser steps, instead of epochs
    learning_rate: float | None = Field(None, gt=0, le=10)  # the method's own if not given
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.06, ge=0, lt=1)  # fraction of optimiser steps
    batch_examples: int | None = Field(None, ge=1)
    batch_tokens: int | None = Field(
        None, ge=8
    )  # padding included, instead of batch_examples; 1024 if neither is given
    accumulation: int = Field(1, ge=1)  # micro-batches that a device makes of its share: less memory, the same update
    auto_micro_batch: bool = False  # where memory runs out: twice as many micro-batches, and on from the same step
    weight_decay: float = Field(0.01, ge=0, le=10)
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    adam_epsilon: float = Field(1e-8, gt=0)
    clip: float | None = Field(1.0, gt=0)  # largest norm of the gradient
    dropout: float | None = Field(0.0, ge=0, lt=1)  # of the base model; null keeps its config's own
    evaluate_every: int | None = Field(None, ge=1)  # optimiser steps; at the end of each epoch if not given
    patience: int | None = Field(None, ge=1)  # evaluations without a better score before stopping
    keep_best: bool = True  # end with the state that scored best on validation, not with the last one
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # bfloat16 where the device computes in it
    gradient_checkpointing: bool = False
    layer_decay: float | None = Field(None, gt=0, le=1)  # a layer's learning rate over that of the layer above it
    adversarial: float | None = Field(None, gt=0)  # norm of FGM's perturbation of an example's embeddings
    embedding_noise: float | None = Field(None, gt=0)  # NEFTune's alpha

    @model_validator(mode="after")
    def _one_of_each(self) -> Training:
        for one, other in (("epochs", "steps"), ("batch_examples", "batch_tokens")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"give {one} or {other}, not both (null takes one back)")
        return self

    @property
    def passes(self) -> float:
        """Epochs, if steps do not say how long."""
        return 3.0 if self.epochs is None else self.epochs

    @property
    def batch(self) -> dict[str, int | None]:
        """The limit of a batch, as `batching` takes it."""
        tokens = 1024 if self.batch_examples is None and self.batch_tokens is None else self.batch_tokens
        return {"examples": self.batch_examples, "tokens": tokens}


class CheckpointPolicy(Settings):
    """How often a run's state is kept. No part of a recipe: it shapes no result."""

    steps: int | None = Field(None, ge=1)  # optimiser steps between two checkpoints
    minutes: float | None = Field(10.0, gt=0)
    keep_last: int = Field(2, ge=1)


class Seeds(Settings):
    """One seed a source of chance, so that methods can be compared on the same batches."""

    initialization: int = Field(0, ge=0, lt=2**63)  # of the head and the method's parameters
    data_order: int = Field(0, ge=0, lt=2**63)
    dropout: int = Field(0, ge=0, lt=2**63)


def _same(seed: object) -> object:
    if isinstance(seed, int) and not isinstance(seed, bool):
        return {"initialization": seed, "data_order": seed, "dropout": seed}
    return seed


AnySeeds = Annotated[Seeds, BeforeValidator(_same, json_schema_input_type=Seeds | int)]
