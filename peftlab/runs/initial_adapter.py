"""Training that starts from the adapter of an earlier run (`init_from`), of this task or another one."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftlab.errors import UserError
from peftlab.loading.attach import apply_method, load_method
from peftlab.loading.inputs import Inputs
from peftlab.loading.model import Base, within
from peftlab.methods import TrainingPlan, token_embeddings
from peftlab.quantization import Quantization
from peftlab.recipe import Recipe
from peftlab.results.result_file import FILE as RESULT
from peftlab.results.result_file import read_result
from peftlab.results.run_result import InitialAdapter
from peftlab.runs import artifact
from peftlab.runs.artifact import Card
from peftlab.tasks import Task

CONFIG = "adapter_config.json"  # PEFT's


@dataclass(frozen=True)
class Origin:
    """The saved adapter that a run starts from."""

    folder: Path
    """Holds the adapter's files."""
    card: Card
    keeps_head: bool
    """True if the task and its labels are the same, so that training continues with the saved head too."""
    record: InitialAdapter


def check(recipe: Recipe) -> None:
    """Raise UserError if `init_from` names no adapter that the recipe's method can start from. Reads no tensors."""
    if recipe.init_from is not None:
        _card(recipe, _run_folder(Path(recipe.init_from)))


def find(recipe: Recipe, inputs: Inputs) -> Origin | None:
    """The adapter that `init_from` names, its files checked. Raises UserError if the recipe cannot start from it."""
    if recipe.init_from is None:
        return None
    folder = _run_folder(Path(recipe.init_from))
    card = _card(recipe, folder)
    if card.model_fingerprint != inputs.files.fingerprint:
        raise UserError(
            f"init_from: {folder} was trained on {card.model.id} with the fingerprint {card.model_fingerprint[:12]}, "
            f"but model: {recipe.model.id} has {inputs.files.fingerprint[:12]}; its base must be the same"
        )
    inner = artifact.check_files(folder, card)
    keeps_head = same_head(card.task, inputs.task)
    record = InitialAdapter(
        name=_name(folder),
        recipe_digest=card.recipe_digest,
        fingerprint=fingerprint(card),
        task=card.task.kind,
        quantization=card.quantization.kind,
        head=keeps_head if inputs.task.new_head else None,
        init_from=card.init_from,
    )
    return Origin(inner, card, keeps_head, record)


def fingerprint(card: Card) -> str:
    """Digest of the adapter's tensors and of the method that they belong to; the folder's path is no part of it."""
    tensors = sorted((name, digest) for name, digest in card.files.items() if name.endswith(".safetensors"))
    return hashlib.sha256(json.dumps([tensors, card.method.model_dump(mode="json")]).encode()).hexdigest()


def current_fingerprint(init_from: str) -> str | None:
    """Fingerprint of what is in the folder now, by its own list of files; None if there is no adapter any more."""
    try:
        return fingerprint(artifact.read_card(_run_folder(Path(init_from))))
    except UserError:
        return None


def same_head(earlier: Task, task: Task) -> bool:
    """True if both tasks have the same head with the same labels in the same order."""
    return earlier.kind == task.kind and earlier.model_settings() == task.model_settings()


def remarks(origin: Origin, recipe: Recipe, head: Iterable[str]) -> str:
    """Description of what the run uses of the adapter, for the console."""
    card, text = origin.card, f"{origin.record.name or origin.folder}, trained for {origin.card.task.kind}"
    if any(True for _ in head):
        text += "; its head is trained further" if origin.keeps_head else "; the head is new: task or labels differ"
    if card.quantization != recipe.quantization:
        text += f"; it was trained over {_storage(card.quantization)}, this run is over {_storage(recipe.quantization)}"
    return text


def _storage(quantization: Quantization) -> str:
    return f"a base in {quantization.title}" if quantization.quantizes else "a base that is not quantized"


def attach(recipe: Recipe, base: Base, plan: TrainingPlan, origin: Origin | None) -> torch.nn.Module:
    """Attach the recipe's method, with new initial values or with the adapter's. Raises UserError."""
    if origin is None:
        return apply_method(recipe, base, plan)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "adapter"
        tensors = _copy_for(origin, base, plan, source)
        if not any(origin.keeps_head or not within(name, base.head) for name in tensors):
            raise UserError(f"init_from: {origin.folder} holds only a task head, for another task or other labels")
        model = load_method(recipe, base, plan, source)
        _require_all(recipe, model, tensors, base, Path(temporary) / "again", origin)
    return model


def _run_folder(path: Path) -> Path:
    """The folder of a run: the one given, or the only finished run of that name in it. Raises UserError."""
    if not path.is_dir():
        elsewhere = Path("runs") / path
        hint = f"; did you mean {elsewhere}?" if elsewhere.is_dir() else ""
        raise UserError(f"init_from: {path} is not a folder of a finished run or of its adapter{hint}")
    runs = sorted(child for child in path.iterdir() if (child / RESULT).exists())
    if not artifact.is_tuned(path) and len(runs) > 1:
        raise UserError(f"init_from: {path} holds {len(runs)} runs; name one: {', '.join(map(str, runs[:5]))}")
    return runs[0] if runs and not artifact.is_tuned(path) else path


def _card(recipe: Recipe, folder: Path) -> Card:
    """The card of the saved adapter. Raises UserError if base or method cannot be the recipe's."""
    try:
        card = artifact.read_card(folder)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    if not recipe.model.local and not card.model.local and card.model.id != recipe.model.id:
        raise UserError(
            f"init_from: {folder} was trained on {card.model.id}, and the recipe's model is {recipe.model.id}; "
            "an adapter fits its own base only"
        )
    reason = recipe.method.cannot_start_from(card.method)
    if reason is not None:
        raise UserError(f"init_from: {folder}: {reason}")
    return card


def _name(folder: Path) -> str | None:
    """Name of the run, if its result is in the folder or the one above."""
    for candidate in (folder, folder.resolve().parent):
        if (candidate / RESULT).exists():
            return read_result(candidate).name
    return None


def _copy_for(origin: Origin, base: Base, plan: TrainingPlan, target: Path) -> dict[str, Tensor]:
    """Copy the adapter for this run's task: without a head for other labels. Returns its tensors."""
    target.mkdir()
    path = origin.folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    modules = (*base.head, *(config.get("modules_to_save") or ()))
    tensors: dict[str, Tensor] = {}
    for file in sorted(origin.folder.glob("*.safetensors")):
        kept = {
            name: tensor for name, tensor in load_file(file).items() if origin.keeps_head or not within(name, modules)
        }
        head = {} if origin.keeps_head else _new_head(base, kept, of_peft=bool(config))
        save_file({**kept, **head}, target / file.name, metadata={"format": "pt"})
        tensors |= kept
    if config:
        config |= {"task_type": plan.task_type, "modules_to_save": list(base.head) or None}
        if "exclude_modules" in config:
            config["exclude_modules"] = list(base.head) or None
        if config.get("target_modules") and not config.get("target_parameters"):
            config["target_modules"] = _adapted(base, tensors)
        (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    return tensors


def _adapted(base: Base, tensors: Iterable[str]) -> list[str]:
    """Full names of the adapted modules. PEFT saves suffixes, which match other modules in a model for another task."""
    weighted = {name.rpartition(".")[0] for name, _ in base.model.named_parameters()}
    adapted = set()
    for name in tensors:
        module = "" if token_embeddings.is_row(name) else name.removeprefix("base_model.model.")
        while module and module not in weighted:
            module = module.rpartition(".")[0]
        if module and not within(f"{module}.weight", base.head):
            adapted.add(module)
    return sorted(adapted)


def _new_head(base: Base, tensors: Mapping[str, Tensor], *, of_peft: bool) -> dict[str, Tensor]:
    """The base's new head under the names that the adapter's file would have for it: PEFT requires them there."""
    prefix = ("base_model." if "prompt_embeddings" in tensors else "base_model.model.") if of_peft else ""
    return {
        f"{prefix}{name}": parameter.detach().cpu().contiguous()
        for name, parameter in base.model.named_parameters()
        if within(name, base.head)
    }


def _require_all(
    recipe: Recipe, model: torch.nn.Module, tensors: dict[str, Tensor], base: Base, folder: Path, origin: Origin
) -> None:
    """Raise UserError unless saving the model again gives the adapter's tensors: libraries skip what does not fit."""
    folder.mkdir()
    recipe.method.save(model, folder)
    again = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    shutil.rmtree(folder)
    expected = {name for name in again if origin.keeps_head or not within(name, base.head)}
    differing = sorted(
        name
        for name in {*tensors, *expected}
        if name not in tensors or name not in again or not torch.equal(tensors[name], again[name])
    )
    if differing:
        raise UserError(
            f"init_from: {origin.folder}: {len(differing)} of its {len(tensors)} tensors have no place in this run's "
            f"model, e.g. {differing[0]}: base class, layers or task differ too much"
        )
