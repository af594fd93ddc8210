"""A bound on the parameters of a tiny model: it is built without memory, and what is large is made smaller."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from peftlab.errors import NotProbed, UserError

MOST_PARAMETERS = 5_000_000
TRIALS = 60
"""Most models that are built on the way."""
NARROWEST = 64
"""Least width of a model that is too large at the width that was asked for."""
SMALLEST = 4
"""Other dimensions are not made smaller than this."""
CLASSES = (
    *("AutoModelForSeq2SeqLM", "AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForCausalLM"),
    *("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"),
    "AutoModel",
)
"""Classes, the largest first. The first that an architecture has is built."""
TOKENS_OR_POSITIONS = re.compile(r"vocab_size|n_words|position|_token_i")
# What libraries raise for a config that does not agree with itself.
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,  # of a config's own checks: none of Python's errors
    TypeError,
    ValueError,
)


def bounded(config_class: type[Any], shrink: Callable[[int], Mapping[str, Any]], width: int) -> Any:
    """Config of a model with at most MOST_PARAMETERS. `shrink` gives the values for a width. Raises NotProbed.

    A narrower model is tried first: its widths agree.
    """
    values = shrink(width)
    config = _config(config_class, values)
    classes = [getattr(transformers, name) for name in CLASSES if _has_class(name, config_class)]
    if not classes:
        return config  # a class of the base's own code
    auto, model = _first_built(classes, config)
    trials = TRIALS
    while _size(model) > MOST_PARAMETERS and width > NARROWEST:
        width //= 2
        values = shrink(width)
        config = _config(config_class, values)
        with probing("transformers cannot build its config"):
            model = _built(auto, config)
    while _size(model) > MOST_PARAMETERS:
        for candidate in _candidates(model, values):
            trials -= 1
            if trials < 0:
                raise NotProbed(_too_large(model))
            try:
                smaller = _config(config_class, candidate)
            except NotProbed:
                continue
            try:
                built = _built(auto, smaller)
            except ERRORS:
                continue
            if _size(built) < _size(model):
                model, config, values = built, smaller, candidate
                break
        else:
            raise NotProbed(_too_large(model))
    return config


@contextlib.contextmanager
def probing(what: str) -> Iterator[None]:
    """Raise what libraries raise here as NotProbed."""
    try:
        yield
    except UserError:
        raise
    except ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise NotProbed(f"{what}: {type(error).__name__}: {reason}") from error


def _too_large(model: Any) -> str:
    return f"a small {model.config.model_type} still has {_size(model):,} parameters"


def _config(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    values = {key: value for key, value in values.items() if key != "model_type"}
    with probing("its config cannot be made smaller"):
        return config_class.from_dict(values)


def _has_class(name: str, config_class: type[Any]) -> bool:
    return config_class in getattr(transformers, name)._model_mapping


def _first_built(classes: Sequence[Any], config: Any) -> tuple[Any, Any]:
    """The first class that can be built, and its model. Raises NotProbed with the reason of the first class."""
    for auto in classes:
        with contextlib.suppress(*ERRORS):
            return auto, _built(auto, config)
    with probing("transformers cannot build its config"):
        return classes[0], _built(classes[0], config)


def _built(auto: Any, config: Any) -> Any:
    """The model, without memory for its parameters."""
    with torch.device("meta"):
        return auto.from_config(config, dtype=torch.float32)


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _candidates(model: Any, values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Values with one number made smaller, the one that the model's largest parameters have as a dimension first."""
    largest = sorted(model.parameters(), key=lambda parameter: -parameter.numel())[:4]
    for parameter in largest:
        for dimension in sorted(set(parameter.shape), reverse=True):
            for factor in (1, 2, 3, 4, 6, 8, 16, 32, 64):
                if dimension % factor == 0 and dimension // factor > SMALLEST:
                    changed = _replaced(values, dimension // factor)
                    if changed != values:
                        yield changed


def _replaced(values: Any, number: int, key: str = "") -> Any:
    """The values with `number` halved wherever it stands, or at once at 512 if it is far larger."""
    if isinstance(values, Mapping):
        return {str(name): _replaced(value, number, str(name)) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_replaced(value, number, key) for value in values]
    if not isinstance(values, int) or isinstance(values, bool):
        return values
    if key.endswith("pad_id") and number // 2 <= values < number:  # of a table that becomes smaller
        return number // 2 - 1
    if values != number or (TOKENS_OR_POSITIONS.search(key) and number <= 512):
        return values
    return min(number // 2, 512)
