"""LoRA (Hu et al., 2021): adds a trainable low-rank product B A to each frozen weight; B starts at zero."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.methods import pissa, token_embeddings
from peftlab.methods.experts import expert_parameters
from peftlab.methods.method import MethodContext, TrainedToken, TrainingPlan
from peftlab.methods.patterns import in_layers, require_matches, value_for
from peftlab.methods.peft_method import PeftMethod, patch
from peftlab.methods.targets import Targets, chosen_layers, left_out_remark

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

OUTPUTS = r"o_proj|output\.dense|o"  # last projections of the attention of three families, for the tests

EMBEDDINGS = {"embed_tokens", "word_embeddings", "wte", "embed_in", "shared"}  # names of input embeddings


class Lora(PeftMethod):
    """Adds a trainable low-rank product to frozen linear layers (LoRA, Hu et al., 2021).

    Computes W x + (alpha / rank) B A x with A (rank, in) and B (out, rank): rank * (in + out) parameters per layer.
    """

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

    retrainable: ClassVar[frozenset[str]] = frozenset({"dropout", "b_rate_ratio"})
    size_setting: ClassVar[str | None] = "rank"
    added_fields: ClassVar[Mapping[str, Any]] = {
        **{"exclude": [], "experts": False, "rank_pattern": {}, "alpha_pattern": {}, "layers": None},
        "train_tokens": [],
    }
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"rank": 4},
        {"rank": 4, "weight_decomposed": True},
        {"rank": 4, "rank_stabilized": True},
        {"rank": 4, "initialization": "pissa"},
        {"rank": 4, "initialization": "olora", "rank_pattern": {OUTPUTS: 6}, "alpha_pattern": {OUTPUTS: 12.0}},
        {"rank": 4, "layers": [1], "rank_pattern": {OUTPUTS: 2}},
        {"rank": 4, "train_tokens": ["<new>"]},
    )

    rank: int = Field(16, ge=1, le=4096)
    """Rank of the update: the number of rows of A and of columns of B."""
    alpha: float = Field(32.0, gt=0)
    """Numerator of the scale alpha / rank by which the update is multiplied."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the input of A."""
    targets: Targets = "all-linear"
    """Layers to adapt: `all-linear`, `attention` (query and value projections), or a list of names or patterns.

    A name is a full name or the end of one (`q_proj`, `self_attn.q_proj`); `*` in a pattern stands for any part of it
    (`language_model.*`). Layers that the task does not run are left out.
    """
    exclude: list[str] = Field(default=[], examples=[["vision_tower.*"]])
    """Names or patterns of layers that are not adapted, written as in `targets`."""
    experts: bool = False
    """Also adapt the experts of a mixture of experts that are stacked in 3-D parameters, each with this rank.

    A step holds a copy of all experts with their updates; with `training.gradient_checkpointing`, of one layer.
    """
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=4096)]] = Field({}, examples=[{"query": 32}])
    """Rank of some layers, by the end of their name or a regular expression for it; the first that matches counts."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field({}, examples=[{"query": 64}])
    """Alpha of some layers, by the end of their name or a regular expression for it; the first that matches counts."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(None, examples=[[4, 5]])
    """Numbers of the transformer layers to adapt, from 0; in an encoder-decoder, of both stacks. Null: all."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski, 2023)."""
    weight_decomposed: bool = False
    """Also train a magnitude per column of the weight (DoRA, Liu et al., 2024)."""
    initialization: Literal["zero", "pissa", "olora"] = "zero"
    """`zero` starts with B = 0, `pissa` with the principal components of the weight (PiSSA, Meng et al., 2024), `olora`
    with orthonormal columns of its QR decomposition (OLoRA, Büyükakyüz, 2024)."""
    train_tokens: list[Annotated[str, Field(min_length=1, pattern=r"^\S+$")]] = Field([], examples=[["<tool>"]])
    """Tokens whose embeddings are trained too, in a tied or separate output layer as well. One that the tokenizer lacks
    is added, and starts as the mean of the pieces that it was split into. A forward pass copies the embeddings."""
    b_rate_ratio: float = Field(1.0, gt=0, le=1e4)
    """Learning rate of B divided by that of A (LoRA+, Hayou et al., 2024)."""

    @model_validator(mode="after")
    def _experts_as_peft_adapts_them(self) -> Self:
        # PEFT adds the product to the stacked parameter, not to the output of a layer.
        changed = {
            "dropout": self.dropout != 0.0,
            "weight_decomposed": self.weight_decomposed,
            "initialization": self.initialization != "zero",
        }
        for key, set_otherwise in changed.items():
            if self.experts and set_otherwise:
                raise ValueError(f"experts: not available with {key}: {getattr(self, key)}; leave one of them out")
        return self

    @model_validator(mode="after")
    def _tokens_by_name(self) -> Self:
        embeddings = sorted(EMBEDDINGS.intersection(name.rpartition(".")[2] for name in self.targets))
        if isinstance(self.targets, list) and embeddings:
            raise ValueError(
                f"targets: {embeddings[0]!r} holds an embedding of each token; name the tokens to train in train_tokens"
            )
        if len(set(self.train_tokens)) < len(self.train_tokens):
            raise ValueError("train_tokens: a token is listed twice")
        return self

    @property
    def trained_tokens(self) -> Sequence[str]:
        return self.train_tokens

    def may_be_idle(self, name: str) -> bool:
        return token_embeddings.is_row(name)

    @property
    def modifies_base(self) -> bool:
        return self.initialization in pissa.TITLES

    @property
    def trains_base(self) -> bool:
        return self.modifies_base  # B A is subtracted from the weights; in bfloat16 the rounding error would be lost

    @property
    def partial_by_choice(self) -> bool:
        return self.targets != "all-linear" or bool(self.exclude) or self.layers is not None

    def incompatible_with(self, context: MethodContext) -> str | None:
        title = pissa.TITLES.get(self.initialization)
        if title and context.quantization != "none":
            return f"{title} needs the singular values of an unquantized weight; use quantization: none"
        if self.train_tokens and (context.sharded or context.zero_stage is not None):
            return (
                "train_tokens replaces rows of the embeddings, of which a process has a shard under FSDP2 or ZeRO; "
                "launch it with data parallelism (recipes/accelerate/ddp.yaml)"
            )
        if self.weight_decomposed and context.zero_stage == 3 and context.quantization != "none":
            return "DoRA replaces a quantized weight with a new tensor, which ZeRO-3 has not partitioned"
        if self.experts and (context.sharded or context.zero_stage == 3):
            return "LoRA on experts replaces their parameters during a forward pass, which was not tried on shards"
        if title and self.weight_decomposed:
            return f"{title} with weight_decomposed cannot be saved separately from the base model; use one of them"
        return None

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            task_type=plan.task_type,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides it, so a float is accepted
            lora_dropout=self.dropout,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            target_modules=self._chosen(model, plan),
            target_parameters=self._experts(model, plan.head),
            trainable_token_indices=token_embeddings.embedding_rows(model, self._tokens(plan)),
            exclude_modules=list(plan.head) or None,
            modules_to_save=list(plan.head) or None,
            use_rslora=self.rank_stabilized,
            use_dora=self.weight_decomposed,
            init_lora_weights=True if self.initialization == "zero" else self.initialization,
        )

    def left_out(self, model: PreTrainedModel, plan: TrainingPlan) -> str | None:
        return left_out_remark(model, plan.head, plan.task_type) if self.targets == "all-linear" else None

    def _tokens(self, plan: TrainingPlan) -> tuple[TrainedToken, ...]:
        return plan.tokens if self.train_tokens else ()

    def _chosen(self, model: PreTrainedModel, plan: TrainingPlan) -> list[str]:
        """Full names of the linear layers to adapt. Raises UserError for a pattern or layer number without effect."""
        chosen = chosen_layers(model, self.targets, plan.head, task_type=plan.task_type, exclude=self.exclude)
        chosen = chosen if self.layers is None else in_layers(chosen, self.layers)
        adapted = [*chosen, *(self._experts(model, plan.head) or [])]
        for key, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            require_matches(f"method.{key}", pattern, adapted)
        return chosen

    def _experts(self, model: PreTrainedModel, head: tuple[str, ...]) -> list[str] | None:
        if not self.experts:
            return None
        names = expert_parameters(model, head)
        return names if self.layers is None else in_layers(names, self.layers)

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        token_embeddings.add_rows(model, self._tokens(plan))
        if self.modifies_base:
            ranks = {name: value_for(name, self.rank_pattern, self.rank) for name in self._chosen(model, plan)}
            pissa.check_layers(model, ranks, self.initialization)
        wrapped = super().apply(model, plan)
        if self._tokens(plan):
            token_embeddings.require_as_base(wrapped)
        if self.modifies_base:
            pissa.store_initial_factors(wrapped)
        return wrapped

    @contextlib.contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        initial = pissa.initial_factors(model)
        if initial is None:
            with super().disabled(model):
                yield
            return
        # PiSSA subtracted the initial B A from the base model's weights.
        factors = {name: p for name, p in model.named_parameters() if name in initial}
        trained = {name: p.data for name, p in factors.items()}
        for name, p in factors.items():
            p.data = initial[name]
        try:
            yield
        finally:
            for name, p in factors.items():
                p.data = trained[name]

    def remedy_for_experts(self, shapes: Collection[Sequence[int]]) -> str:
        # B A per expert: rank x (rows + columns)
        count = sum(self.rank * experts * (rows + columns) for experts, rows, columns in shapes)
        return f"method.experts: true adapts the experts too, with {count:,} trainable parameters more"

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(model, learning_rate, weight_decay)
        if self.b_rate_ratio == 1.0:
            return groups
        b_factors = {id(p) for name, p in model.named_parameters() if ".lora_B." in name}
        split = []
        for group in groups:
            others = [p for p in group["params"] if id(p) not in b_factors]
            scaled = [p for p in group["params"] if id(p) in b_factors]
            split.append({**group, "params": others})
            split.append({**group, "params": scaled, "lr": learning_rate * self.b_rate_ratio})
        return [group for group in split if group["params"]]

    def save(self, model: nn.Module, folder: Path) -> None:
        super().save(model, folder)
        if self.modifies_base:
            pissa.save_as_lora(model, folder)

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        token_embeddings.make_room_for(base, folder)
        if self.modifies_base:
            sizes: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha}
            sizes |= {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
            model = patch(pissa.load_from_lora(base, folder, sizes=sizes, trainable=trainable))
        else:
            model = super().load(base, folder, trainable=trainable)
        if trainable:
            _set_dropout(model, self.dropout)
        return model


def _set_dropout(model: PeftModel, rate: float) -> None:
    """Replace the dropout of a loaded adapter, which is that of the run that saved it."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    model.peft_config["default"].lora_dropout = rate  # type: ignore[attr-defined]
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout["default"] = nn.Dropout(rate) if rate else nn.Identity()
