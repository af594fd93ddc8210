"""Interface that every fine-tuning method implements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.component import Component, Reference

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class TrainedToken:
    """A token whose embedding is trained."""

    text: str
    id: int
    pieces: tuple[int, ...]
    """Ids of the tokens that its embedding starts from as their mean; its own id if the base has the token."""

    @property
    def is_new(self) -> bool:
        """True if the base's tokenizer lacks the token."""
        return self.pieces != (self.id,)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Facts about a run that a method may use when it is attached to the model."""

    optimizer_steps: int
    task_type: str
    """One of PEFT's TaskType names, e.g. "TOKEN_CLS"."""
    head: tuple[str, ...] = ()
    """Full names of the modules of the new task head. They are trained and saved with the method."""
    longest_input: int | None = None
    """Length of the longest example in tokens."""
    seed: int = 0
    """Seed of the initialization."""
    tokenize: Callable[[str], list[int]] | None = None
    """The base model's tokenizer, without special tokens."""
    tokens: tuple[TrainedToken, ...] = ()
    """The tokens that the method's `trained_tokens` name."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """Facts about a run that are known at validation, before anything is loaded."""

    architecture: str | None
    """transformers' model_type, e.g. "bert". None if it cannot be determined offline."""
    quantization: str
    """Kind of the quantization."""
    task_type: str
    """One of PEFT's TaskType names."""
    gradient_checkpointing: bool = False
    packed: bool = False
    """True if several rows share a sequence."""
    sharded: bool = False
    """True if each process holds a shard of every tensor."""
    zero_stage: int | None = None
    """Stage of DeepSpeed ZeRO. From stage 2 on, no process holds a full gradient."""
    dispatched: bool = False
    """True if the layers are distributed over several devices of one process."""
    averaged: bool = False
    """True if the model is evaluated at an average of its weights over the steps."""


class Method(Component):
    """Turns a base model into one with few trainable parameters. A subclass holds the settings and does the work.

    A subclass must implement `apply`, `save` and `load` and assign `kind`, `title` and `learning_rate`. Everything else
    has a default.

    `apply` is called once, before training. Each optimizer step then consists of forward and backward passes on the
    task loss, a backward pass on `penalty` if there is one, the optimizer's step, `after_step` and `zero_grad`.
    """

    title: ClassVar[str]
    """Name in tables, e.g. "LoRA"."""
    learning_rate: ClassVar[float]
    """Default learning rate, chosen for a BERT-sized encoder."""
    references: ClassVar[tuple[Reference, ...]] = ()
    """Papers, for the bibliography."""
    fidelity: ClassVar[str | None] = None
    """Known differences from the paper."""
    folder: ClassVar[str] = "adapter"
    """Subfolder of a run that `save` writes to."""
    merges: ClassVar[bool] = False
    """True if `merge` can fold the method into the base model's weights."""
    may_train_unused: ClassVar[bool] = False
    """True if the method may also train parameters that the task's forward pass does not use."""
    size_setting: ClassVar[str | None] = None
    """Setting in which the number of trainable parameters grows linearly, e.g. "rank"."""
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Settings that fit a model of width 64, one for each code path. Used by the contract tests and the doctor."""

    retrainable: ClassVar[frozenset[str]] = frozenset()
    """Settings in which a training may differ from the one whose result it starts from: they act on training only."""

    @property
    def trains_base(self) -> bool:
        """True if some of the base model's own weights change. The base model is then loaded in float32."""
        return False

    @property
    def starts_as_base(self) -> bool:
        """True if the untrained method computes the same outputs as the base model."""
        return True

    @property
    def modifies_base(self) -> bool:
        """True if `apply` subtracts the initial values of the method's parameters from the base model's weights."""
        return False

    @property
    def acts_on(self) -> str:
        """What the method changes: `weights` (matrices of the base model), `layers`, or other words for a message."""
        return "weights"

    @property
    def partial_by_choice(self) -> bool:
        """True if the method or its settings select some of the weights on purpose."""
        return False

    @property
    def trained_tokens(self) -> Sequence[str]:
        """Tokens whose embeddings are trained; those that the base's tokenizer lacks are added to it."""
        return ()

    def may_be_idle(self, name: str) -> bool:
        """True if a whole batch may give this trainable parameter a gradient of zero."""
        return False

    @property
    def positions(self) -> int:
        """Number of the model's positions that the method occupies in every input."""
        return 0

    def resized(self, size: int) -> Self:
        """Return this method with its `size_setting` set to `size`. Raises ValidationError if the value is invalid."""
        assert self.size_setting is not None
        return self.model_validate({**self.model_dump(), self.size_setting: size})

    def incompatible_with(self, context: MethodContext) -> str | None:
        """Reason in one line why this method cannot run in `context`, or None if it can."""
        return None

    def cannot_start_from(self, earlier: Method) -> str | None:
        """Reason in one line why training cannot start from the saved result of `earlier`, or None if it can."""
        if earlier.kind != self.kind:
            return f"trained with method {earlier.kind}, and the recipe's is {self.kind}; they must be the same"
        then, now = earlier.model_dump(mode="json"), self.model_dump(mode="json")
        differing = [key for key in now if key not in self.retrainable and then.get(key) != now[key]]
        if differing:
            key = differing[0]
            return (
                f"trained with method.{key} {then.get(key)}, and the recipe has {now[key]}; write method.{key} as there"
            )
        return None

    def left_out(self, model: PreTrainedModel, plan: TrainingPlan) -> str | None:
        """Line for the console about what `apply` leaves out of this base, or None."""
        return None

    @abstractmethod
    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        """Attach this method to `model`: only the method's parameters and the head require a gradient.

        Draws initial values from torch's global generator. Raises ValueError if nothing can be attached.
        """

    def adapted_places(self, model: nn.Module) -> Collection[str] | None:
        """Full names, in the base model, of the modules and weights that the method adapts or trains.

        None if it changes neither weights nor layers. `model` is what `apply` returned.
        """
        return None

    def remedy_for_experts(self, shapes: Collection[Sequence[int]]) -> str:
        """Sentence on how to adapt stacked experts, of these shapes, that the method leaves out."""
        return "method: {kind: lora, experts: true} adapts experts"

    def remark(self, model: PreTrainedModel) -> str | None:
        """Remark for the user on this method with this base model, or None."""
        return None

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer. One-dimensional tensors (biases, norms) are excluded from weight decay,
        as in BERT's reference implementation.
        """
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for _, p in trainable if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
            {"params": [p for _, p in trainable if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
        ]

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Scalar that is added to the loss once per optimizer step, or None."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Hook called after optimizer step number `step` (1-based), before the gradients are cleared."""

    def selectable(self, step: int, steps: int) -> bool:
        """True if the state after this 1-based step of `steps` may be selected as the best checkpoint."""
        return True

    def state(self, model: nn.Module) -> dict[str, Any]:
        """State that an exact resume needs in addition to parameters and optimizer: tensors and JSON values by name."""
        return {}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained parameters, head included, to `folder` as safetensors."""

    @abstractmethod
    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        """Attach what `save` wrote to a fresh base model. The logits equal those at the time of saving bit for bit."""

    def merge(self, model: nn.Module) -> nn.Module:
        """Return the base model with the method folded into its weights. Implemented only where `merges` is True."""
        raise NotImplementedError(f"{self.kind} cannot be merged into the base model")

    def disabled(self, model: nn.Module) -> Any:
        """Context manager in which `model` computes the base model's outputs with the trained head.

        Not implemented by methods that train the base model's own weights.
        """
        raise NotImplementedError(f"{self.kind} cannot be disabled")

    def stats(self, model: nn.Module) -> dict[str, Any]:
        """Figures specific to the method for the result record, e.g. AdaLoRA's final ranks."""
        return {}
