"""Trace of an architecture: a tiny model for each task that it has, one forward and backward pass of each."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from peftlab.errors import NotProbed, UserError
from peftlab.models.fact_types import Facts, Sublayer, matching
from peftlab.models.text_branch import auto_class
from peftlab.models.tiny_model import small_config
from peftlab.models.trace import attention, behavior, branches
from peftlab.models.trace.recording import LENGTH, pattern_of, record
from peftlab.models.trace.sublayers import Sum, layers_of, sums_of

WIDTH = 64  # hidden size of the tiny model
LARGEST = 60_000_000  # parameters of a tiny model that is traced
AUTO_CLASSES = {  # by PEFT's task type; the first that an architecture has tells where its sublayers are
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
ERRORS = (*behavior.LIBRARY_ERRORS, ImportError, NotImplementedError, StrictDataclassError, NotProbed, UserError)


def trace(architecture: str, values: Mapping[str, Any] | None = None) -> Facts:
    """Facts about an architecture, from a config with these values. What fails is a reason in `unknown`."""
    facts: dict[str, Any] = {"left_out": {}, "no_prefix": {}, "unknown": {}}
    with _quiet():
        try:
            config = tiny_config(architecture, values)
        except ERRORS as error:
            return Facts(unknown={"model": _reason(error)})
        first = True
        for task_type in tasks_of(config):
            try:
                probe = Probe(config, task_type)
                facts["left_out"] |= {task_type: reasons} if (reasons := probe.left_out()) else {}
                if (refusal := probe.prefix_refusal()) is not None:
                    facts["no_prefix"][task_type] = refusal
                if task_type == "SEQ_CLS":
                    facts["last_token"] = behavior.finds_last_token(probe.model, probe.batch, probe.padding)
                if first:
                    facts |= probe.places() | probe.positions()
                    facts["unknown"] |= probe.unknown
                    first = False
            except ERRORS as error:
                facts["unknown"][task_type] = _reason(error)
    if first:
        failures = [*facts["unknown"].values(), "transformers has no model of it for any task"]
        facts["unknown"].setdefault("model", failures[0])
    return Facts(**facts)


def tasks_of(config: Any) -> list[str]:
    """Task types for which transformers has a model of this config."""
    return [
        task_type for task_type, name in AUTO_CLASSES.items() if type(config) in auto_class(name, config)._model_mapping
    ]


class Probe:
    """A tiny model of one task, after one forward and backward pass."""

    def __init__(self, config: Any, task_type: str) -> None:
        self.config, self.task_type = config, task_type
        self.padding: int = config.get_text_config().pad_token_id
        self.model = self._build(config)
        self.batch = self._batch()
        self.unknown: dict[str, str] = {}
        text = self.model.config.get_text_config()
        cached, text.use_cache = getattr(text, "use_cache", None), False  # state-space models make a cache that fails
        self.recording, outputs = record(self.model, self.batch)
        if cached is not None:
            text.use_cache = cached
        behavior.loss_of(outputs).backward(retain_graph=True)

    def _build(self, config: Any) -> Any:
        with torch.device("meta"):
            size = sum(p.numel() for p in self._model(config).parameters())
        if size > LARGEST:
            raise UserError(f"its small model has {size // 10**6} million parameters")
        torch.manual_seed(0)
        model = self._model(config)
        model.requires_grad_(True)
        return model.eval()

    def _model(self, config: Any) -> Any:
        auto = auto_class(AUTO_CLASSES[self.task_type], config)
        try:
            return auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
        except ValueError as error:
            if "attn_implementation" not in str(error) and "attention implementation" not in str(error):
                raise
            return auto.from_config(config, dtype=torch.float32)

    def _batch(self) -> dict[str, torch.Tensor]:
        ids = torch.randint(10, 250, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        eos = getattr(self.config.get_text_config(), "eos_token_id", None)
        if isinstance(eos, int) and self.task_type == "SEQ_CLS":
            ids[:, -1] = eos
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.task_type == "SEQ_2_SEQ_LM":
            batch["decoder_input_ids"] = ids[:, : LENGTH - 3]
        return batch

    def places(self) -> dict[str, Any]:
        """Sublayers, projections and biases."""
        sums = sums_of(self.recording, layers_of(self.model, self.recording))
        mixing = _largest(each for each in sums if each.mixes)
        position_wise = _largest(each for each in sums if not each.mixes and not each.crosses)
        projections = attention.projections(self.recording, [each for each in sums if each.mixes or each.crosses])
        inside = set[str]()
        for each in position_wise:
            inside |= attention.last_linear(self.recording, each, each.layer.shape[-1])
        if not sums:
            self.unknown["sublayers"] = "no module of it maps a sequence to the sum of it and of a sublayer's output"
        return {
            "attention": self._sublayers(mixing, "attention", residuals=False),
            "feed_forward": self._sublayers(position_wise, "feed_forward", residuals=True),
            "keys_and_values": self._patterns(projections.keys | projections.values, "keys_and_values"),
            "queries_and_values": self._patterns(projections.queries | projections.values, "queries_and_values"),
            "inside_feed_forward": self._patterns(inside, "inside_feed_forward"),
            "biases": self._has_biases(),
            "encoder_decoder": bool(self.config.is_encoder_decoder),
        }

    def positions(self) -> dict[str, Any]:
        return {
            "after_padding": behavior.starts_after_padding(self._build, self.config, self.padding),
            "unlimited": behavior.ignores_positions(self.config, type(self.model), self.batch),
        }

    def left_out(self) -> dict[str, str]:
        found = branches.left_out(self.model, self.recording)
        members: dict[str, list[str]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, (nn.Linear, transformers.pytorch_utils.Conv1D)):
                members.setdefault(self._relative(pattern_of(name)), []).append(name)
        return branches.by_pattern(self.model, found, members)

    def prefix_refusal(self) -> str | None:
        return behavior.prefix_refusal(self.model, self.batch, self.task_type)

    def _has_biases(self) -> bool:
        trunk = getattr(self.model, self.model.base_model_prefix, self.model)
        return any(name.endswith("bias") and p.grad is not None for name, p in trunk.named_parameters())

    def _relative(self, name: str) -> str:
        return name.removeprefix(f"{self.model.base_model_prefix}.")

    def _patterns(self, names: Iterable[str], question: str) -> tuple[str, ...]:
        """Patterns of these modules, in the order of the model. None if they match other modules too."""
        wanted = set(names)
        every = [name for name, _ in self.model.named_modules()]
        patterns = tuple(dict.fromkeys(self._relative(pattern_of(name)) for name in every if name in wanted))
        if set(matching(every, patterns)) != wanted:
            self.unknown[question] = "the same names are other modules in other layers"
            return ()
        return patterns

    def _sublayers(self, sums: Sequence[Sum], question: str, *, residuals: bool) -> tuple[Sublayer, ...]:
        found: dict[tuple[str, str | None, str | None], dict[str, None]] = {}
        names = set()
        for each in sums:
            ends = each.ends or each.tuple_ends
            reader = (
                next(
                    (name for name in each.readers if not f"{ends[0]}.".startswith(f"{name}.") or name == ends[0]), None
                )
                if ends
                else None
            )
            if not ends or (residuals and reader is None):
                self.unknown[question] = f"no module ends the sublayer of {self._relative(pattern_of(each.layer.name))}"
                continue
            inner = len(each.layer.name) + 1
            key = (
                ends[0][inner:],
                reader[inner:] if residuals and reader is not None else None,
                each.norm[inner:] if residuals and each.norm is not None else None,
            )
            found.setdefault(key, {})[self._relative(pattern_of(each.layer.name))] = None
            names.add(ends[0])
        sublayers = tuple(
            Sublayer(tuple(layers), hidden, residual=residual, norm=norm)
            for (hidden, residual, norm), layers in found.items()
        )
        patterns = [f"{layer}.{each.hidden}" for each in sublayers for layer in each.layers]
        every = [name for name, _ in self.model.named_modules()]
        if set(matching(every, patterns)) != names:
            self.unknown[question] = "the same names are other modules in other layers"
            return ()
        return sublayers


def _largest(sums: Iterable[Sum]) -> list[Sum]:
    """The sum with the most parameters of each layer, in the order of the layers."""
    largest: dict[str, Sum] = {}
    for each in sums:
        if each.layer.name not in largest or each.weights > largest[each.layer.name].weights:
            largest[each.layer.name] = each
    return list(largest.values())


def tiny_config(architecture: str, values: Mapping[str, Any] | None = None) -> Any:
    """Config of a tiny model without dropout and with a padding token. Raises UserError if there is none."""
    config = small_config({**(values or {}), "model_type": architecture}, WIDTH)
    text = config.get_text_config()
    if not isinstance(getattr(text, "pad_token_id", None), int):
        text.pad_token_id = 0
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = text.pad_token_id
    if getattr(config, "languages", None) and getattr(config, "default_language", "") is None:
        config.default_language = config.languages[0]  # X-MOD, which asks for the language of each row
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return text if isinstance(error, NotProbed) else f"not probed: {type(error).__name__}: {text}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and log lines of the libraries, and with torch's random state restored."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            warnings.simplefilter("ignore")
            with torch.autocast("cpu", enabled=False):
                yield
    finally:
        transformers.logging.set_verbosity(level)
