"""Base class of the methods that the PEFT library implements: wrapping, saving, loading, merging."""

from __future__ import annotations

import contextlib
import json
import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.errors import UserError
from peftlab.methods.adapted import adapted, chosen_places, require_chosen, targets_as_given
from peftlab.methods.dtypes import match_output_dtype
from peftlab.methods.method import Method, TrainingPlan

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel


class PeftMethod(Method):
    """Method whose parameters PEFT creates from a config. A subclass returns the config."""

    @abstractmethod
    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        """PEFT's config for this model, with the head in `modules_to_save`."""

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        from peft import get_peft_model

        config = self.config(model, plan)
        chosen = chosen_places(config, model)
        with targets_as_given():
            wrapped = get_peft_model(model, config)
        if chosen is not None:
            require_chosen(wrapped, chosen)
        return patch(wrapped)

    def adapted_places(self, model: nn.Module) -> Collection[str] | None:
        return adapted(model) if self.acts_on in ("weights", "layers") else None

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)  # type: ignore[operator]
        _sort_names(folder / "adapter_config.json", model.peft_config["default"])  # type: ignore[arg-type,index]

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        from peft import PeftModel

        with targets_as_given(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?s).*Found missing adapter keys")
            try:
                return patch(PeftModel.from_pretrained(base, folder, is_trainable=trainable))
            except UserWarning as missing:  # PEFT would leave these tensors as they were initialized
                raise UserError(
                    f"{folder}: PEFT does not find all tensors of this adapter for a {base.config.model_type}: "
                    f"{str(missing).partition('checkpoint: ')[2][:120]}..."
                ) from None

    def merge(self, model: nn.Module) -> nn.Module:
        return model.merge_and_unload(safe_merge=True)  # type: ignore[operator,no-any-return]

    @contextlib.contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        from peft.utils.other import ModulesToSaveWrapper

        with model.disable_adapter():  # type: ignore[operator]
            # disable_adapter also restores the untrained head.
            for module in model.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    module.enable_adapters(True)
            yield


def _sort_names(path: Path, config: PeftConfig) -> None:
    """Sort what PEFT holds as sets: their order depends on the process's hash seed, and so would the file's bytes."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {key: sorted(values[key]) for key, value in vars(config).items() if isinstance(value, set)}
    path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def patch(model: PeftModel) -> PeftModel:
    """Work around limitations of PEFT that affect every method."""
    match_output_dtype(model)
    return _with_token_types(model)


def _with_token_types(model: PeftModel) -> PeftModel:
    """Use a subclass for question answering: PEFT's does not pass token types on to the base model."""
    from peft import PeftModelForQuestionAnswering

    if type(model) is PeftModelForQuestionAnswering:
        from peftlab.methods.tuners.question_answering import WithTokenTypes

        model.__class__ = WithTokenTypes
    return model
