"""What a method of fine-tuning is asked, by a loop that does not know which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.component import Component, Reference

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingPlan:
    """What a method may know of the run before it starts."""

    optimizer_steps: int
    task_type: str  # one of PEFT's TaskType names, e.g. "TOKEN_CLS"
    head: tuple[str, ...] = ()  # modules of the new task head, by full name: trained and saved with the method
    longest_input: int | None = None  # tokens of the longest example
    seed: int = 0  # of the initialisation
    tokenize: Callable[[str], list[int]] | None = None  # the base's tokenizer, without special tokens


@dataclass(frozen=True)
class MethodContext:
    """What is known of a run at validation, before anything loads."""

    architecture: str | None  # transformers' model_type, e.g. "bert"; None if it cannot be known offline
    quantization: str  # kind
    task_type: str  # one of PEFT's TaskType names
    gradient_checkpointing: bool = False
    packed: bool = False  # several rows share a sequence
    sharded: bool = False  # each process holds a share of every tensor
    zero_stage: int | None = None  # DeepSpeed's stage: from 2 on no process has all of a gradient
    dispatched: bool = False  # the layers are on several devices


class Method(Component):
    """Turns a base model into one with few trainable parameters. Subclasses are frozen settings that do the work.

    The loop calls `apply` once, then for each optimiser step: forwards and backwards on the task's loss alone,
    a backward on `penalty` if there is one, the optimiser's step, `after_step`, and only then `zero_grad`.
    """

    title: ClassVar[str]  # as in a table: "LoRA"
    references: ClassVar[tuple[Reference, ...]] = ()  # for a bibliography
    fidelity: ClassVar[str | None] = None  # what this implementation does that the paper does not, or the reverse
    learning_rate: ClassVar[float]  # sensible value for a BERT-sized encoder
    folder: ClassVar[str] = "adapter"  # of a run, for what `save` writes
    merges: ClassVar[bool] = False  # `merge` folds the method into the base's weights
    may_train_unused: ClassVar[bool] = False  # all it finds there, also parts that the task's forward does not use

    size_setting: ClassVar[str | None] = None  # the setting in which its count of parameters grows evenly, if any

    # Settings that fit a model 64 wide, one for each way through the code: what the contract tests and the doctor try.
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @property
    def trains_base(self) -> bool:
        """Whether some of the base's own weights change, so that it is loaded in float32."""
        return False

    @property
    def starts_as_base(self) -> bool:
        """Whether it computes what the base does until it is trained."""
        return True

    @property
    def modifies_base(self) -> bool:
        """Whether `apply` takes something out of the base's weights, which the method's parameters then hold."""
        return False

    @property
    def positions(self) -> int:
        """How many of the model's positions the method takes from every input."""
        return 0

    def resized(self, size: int) -> Self:
        """The same method with this `size_setting`. Raises ValidationError if it cannot be such."""
        assert self.size_setting is not None
        return self.model_validate({**self.model_dump(), self.size_setting: size})

    def incompatible_with(self, setting: MethodContext) -> str | None:
        """Why this method cannot run in `setting`, in one line, or None if it can."""
        return None

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        """Return `model` with this method attached: only the method's parameters and the head require a gradient.

        Draws initial values from torch's global generator. Raises ValueError if nothing can be attached.
        """
        raise NotImplementedError

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimiser's groups. Vectors (biases, norms) are not decayed, as in BERT's reference code."""
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for _, p in trainable if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
            {"params": [p for _, p in trainable if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
        ]

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the loss once per optimiser step, or None."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called with the 1-based step after the optimiser's step, while the gradients are still there."""

    def selectable(self, step: int, steps: int) -> bool:
        """Whether the state after this 1-based step of `steps` may be kept as the best: e.g. it has its final size."""
        return True

    def state(self, model: nn.Module) -> dict[str, Any]:
        """What beside parameters and optimiser an exact resume needs: tensors and JSON values, by name."""
        return {}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained parameters, head included, into `folder` as safetensors."""
        raise NotImplementedError

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        """Attach to a fresh base what `save` wrote; the same logits come out to the bit."""
        raise NotImplementedError

    def merge(self, model: nn.Module) -> nn.Module:
        """The base with the method folded into its weights. Only where `merges`."""
        raise NotImplementedError(f"{self.kind} cannot be merged into the base")

    def disabled(self, model: nn.Module) -> Any:
        """A context in which `model` computes what the base alone would (the head stays as trained)."""
        raise NotImplementedError

    def stats(self, model: nn.Module) -> dict[str, Any]:
        """Figures of the method's own for the result, e.g. AdaLoRA's final ranks."""
        return {}
