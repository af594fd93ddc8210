"""A tuned model on the disk: the method's tensors, and what is needed to use them: base, task, labels, tokenizer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, ValidationError

from peftlab.component import Precision, Settings
from peftlab.errors import UserError, first_error
from peftlab.io import untrusted
from peftlab.io.atomic import sha256
from peftlab.loading.attention import use_attention
from peftlab.loading.model import Base, LoadOptions, load_base, load_tokenizer, publish_dropout, publish_processors
from peftlab.methods import METHODS, AnyMethod
from peftlab.models.model import AnyModel, ModelFiles
from peftlab.quantization import AnyQuantization, Quantization
from peftlab.results.run_result import InitialAdapter
from peftlab.tasks import AnyTask, Task
from peftlab.training.precision import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "peftlab.json"


class Card(Settings):
    """The file next to the tensors that says how to load them."""

    version: Literal[1] = 1
    model: AnyModel
    """The base model."""
    model_fingerprint: str
    """Digest of the base's files."""
    task: AnyTask
    """Bound to the data: it knows the labels."""
    method: AnyMethod
    quantization: AnyQuantization
    precision: Precision
    attention: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """transformers' name of the attention kernel; None: not recorded."""
    limit: int
    """Tokens of the longest input."""
    files: dict[str, str] = Field(default={})
    """sha256 of each file next to this one, by name; `save` fills it in."""
    recipe_digest: str
    init_from: InitialAdapter | None = Field(default=None, exclude_if=lambda value: value is None)
    """The adapter that the training started from."""


@dataclass(frozen=True)
class Tuned:
    """A loaded tuned model."""

    card: Card
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: Base

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context of a forward pass in the precision of the training."""
        return autocast(self.card.precision, self.base.model.device)


def save(card: Card, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, base: ModelFiles, folder: Path) -> int:
    """Write the tuned model into `folder`. Returns the size of the tensors in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    set_generation(model, card.task, tokenizer)
    card.method.save(model, folder)
    if (folder / "config.json").exists():  # a full model was saved
        publish_dropout(folder, base)
        publish_processors(folder, base)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    card = card.model_copy(update={"files": {path.name: sha256(path) for path in sorted(folder.iterdir())}})
    (folder / FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def set_generation(model: Any, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what a generation for this task needs into the model's generation config, with which it is saved."""
    for name, value in task.generation_settings(tokenizer).items():
        setattr(model.generation_config, name, value)


def read_card(folder: Path) -> Card:
    """Read the card of a run, or of the folder in it that holds the model. Raises UserError with one line."""
    path = _model_folder(folder) / FILE
    try:
        return Card.model_validate_json(untrusted.read_small(path))
    except OSError:
        raise UserError(f"{folder}: no tuned model here (no {FILE} in it, nor in adapter/ or model/)") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from None


def is_tuned(folder: Path) -> bool:
    """True if this is the folder of a run, or the folder in it that holds the model."""
    return (_model_folder(folder) / FILE).exists()


def check_files(folder: Path, card: Card) -> Path:
    """Compare every file with the card. Returns the folder that holds the model. Raises UserError."""
    inner = _model_folder(folder)
    untrusted.refuse_pickles(inner)
    for name, saved in card.files.items():  # PEFT would initialize tensors that are missing
        if Path(name).name != name:
            raise UserError(f"{inner / FILE}: files: {name!r} is not the name of a file next to it")
        try:
            digest = sha256(inner / name)
        except OSError as error:
            raise UserError(f"{inner / name}: cannot be read: {error.strerror}") from None
        if digest != saved:
            raise UserError(f"{inner / name}: not what was saved: sha256 {digest[:12]}, expected {saved[:12]}")
        if name.endswith(".safetensors"):
            untrusted.check_tensors(inner / name)
    return inner


def _model_folder(folder: Path) -> Path:
    """The folder of a run that holds the model."""
    candidates = (folder, *(folder / name for name in sorted({method.folder for method in METHODS.values()})))
    return next((candidate for candidate in candidates if (candidate / FILE).exists()), folder)


def load(
    folder: Path,
    *,
    device: torch.device,
    quantization: Quantization | None = None,
    compute: torch.dtype | None = None,
    trust: str | None = None,
) -> Tuned:
    """Load a run's model for inference, with another `quantization` or `compute` dtype than in training if given.

    Every file is checked against the card. `trust`: see `Model.files`. Raises UserError.
    """
    card = read_card(folder)
    inner = check_files(folder, card)
    try:
        files = card.model.files(trust)
    except UserError as error:
        raise UserError(
            f"{error}; {folder} was trained on this base: put it there (its fingerprint is checked), or write its new "
            f"place as model.id into {inner / FILE}"
        ) from None
    if files.fingerprint != card.model_fingerprint:
        raise UserError(
            f"{folder}: trained on another version of {card.model.id}: "
            f"found {files.fingerprint[:12]}, expected {card.model_fingerprint[:12]}"
        )
    tokenizer = _tokenizer(inner, files, card.task)
    card.task.prepare_tokenizer(tokenizer)
    base = load_base(
        card.model,
        files,
        card.task,
        card.quantization if quantization is None else quantization,
        LoadOptions(
            device=device,
            compute=getattr(torch, card.precision) if compute is None else compute,
            frozen=not card.method.trains_base,
            padding_token=tokenizer.pad_token_id,
        ),
    )
    use_attention(base.model, card.attention)
    model = card.method.load(base.model, inner)
    model.to(device)
    model.eval()
    return Tuned(card, model, tokenizer, base)


def _tokenizer(folder: Path, base: ModelFiles, task: Task) -> PreTrainedTokenizerBase:
    """The saved tokenizer. If its class is the base's own code, that code is loaded from the base, not from a copy."""
    import transformers

    if base.trusted:
        tokenizer_class: Any = type(load_tokenizer(base, task))
        if not tokenizer_class.__module__.startswith("transformers."):
            saved: PreTrainedTokenizerBase = tokenizer_class.from_pretrained(folder, trust_remote_code=False)
            return saved
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        raise UserError(f"{folder}: has no usable tokenizer: {' '.join(str(error).split())[:200]}") from None
