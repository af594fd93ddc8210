"""The text branch of a multimodal checkpoint: the class that loads all of it, and what lies outside of the branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

TEXT = "AutoModelForCausalLM"
MULTIMODAL = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def auto_class(name: str, config: PretrainedConfig) -> Any:
    """Auto class of transformers that loads a checkpoint of this config whole, for a task whose class is `name`.

    Many multimodal architectures have no causal language model. For others it is the text branch alone, without
    the towers: it is used only if the config says that the checkpoint is one.
    """
    import transformers

    served = getattr(transformers, name)
    if name != TEXT:
        return served
    text = _model(served, config)
    for other in MULTIMODAL:
        auto = getattr(transformers, other)
        whole = _model(auto, config)
        if whole is not None and whole is not text:
            text_only = text is not None and text.__name__ in (getattr(config, "architectures", None) or ())
            return served if text_only else auto
    return served


def text_values(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values of the text branch in those of a config.json, with the library's defaults; of any other model all values.

    >>> text_values({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 7}})["vocab_size"]
    7
    """
    import transformers

    architecture = str(values.get("model_type"))
    if architecture not in transformers.CONFIG_MAPPING or not transformers.CONFIG_MAPPING[architecture].sub_configs:
        return values
    settings = {key: value for key, value in values.items() if key != "model_type"}
    text = text_config(transformers.CONFIG_MAPPING[architecture].from_dict(settings))
    return values if text is None else text.to_dict()


def text_config(config: PretrainedConfig) -> PretrainedConfig | None:
    """Config of the text branch in that of a multimodal decoder, else None."""
    if config.is_encoder_decoder:
        return None
    text = config.get_text_config(decoder=True)
    return None if text is config else text


def set_in_text_branch(config: PretrainedConfig, settings: Mapping[str, Any]) -> None:
    """Set those of the settings in the config of the text branch that it has."""
    text = text_config(config)
    for key, value in settings.items():
        if text is not None and hasattr(text, key):
            setattr(text, key, value)


def outside(model: PreTrainedModel, head: Iterable[str] = ()) -> tuple[str, ...]:
    """Full names of the modules and single parameters of a multimodal model that text does not pass through.

    These are the vision and audio towers with their projectors. Empty for a model of text alone, and for one whose
    code does not separate its text branch from the rest. `head` names the modules of a task head.
    """
    branch = _text_modules(model)
    if not branch:
        return ()
    branch += [model.get_input_embeddings(), model.get_output_embeddings()]
    branch += [model.get_submodule(name) for name in head]
    return tuple(_outside(model, {id(module) for module in branch if module is not None}, ""))


def forget_positions(model: nn.Module) -> None:
    """Remove what a generation leaves in the models of the Qwen-VL family: an offset for the next forward's positions.

    With it they count a prefix of virtual tokens as input, and end in an error.
    """
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None  # type: ignore[assignment]


def _text_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder of a multimodal model, and the text encoder before it if there is one; none of any other model."""
    decoder = model.get_decoder()
    if not model.config.is_encoder_decoder:
        return [] if text_config(model.config) is None else [decoder]
    encoder = model.get_encoder()
    text = encoder.get_decoder() if hasattr(encoder, "get_decoder") else encoder  # its text_model, or itself
    separate = encoder is not model and decoder is not model and text is not encoder
    return [text, decoder] if separate else []


def _outside(module: nn.Module, branch: set[int], prefix: str) -> Iterator[str]:
    if id(module) in branch:
        return
    yield from (f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        if any(id(inner) in branch for inner in child.modules()):
            yield from _outside(child, branch, f"{prefix}{name}.")
        elif next(child.parameters(), None) is not None:
            yield f"{prefix}{name}"


def counts_outside(model: PreTrainedModel, head: Iterable[str] = ()) -> dict[str, int]:
    """Number of parameters of each part outside the text branch."""
    parameters = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    return {part: sum(size for name, size in parameters if is_part_of(name, [part])) for part in outside(model, head)}


def is_part_of(name: str, modules: Iterable[str]) -> bool:
    """True if a parameter or module is one of `modules` or lies in one.

    >>> is_part_of("model.visual.blocks.0", ["model.visual"]), is_part_of("model.visual_head", ["model.visual"])
    (True, False)
    """
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _model(auto: Any, config: PretrainedConfig) -> Any:
    """Class of this auto class for the config, or None."""
    if type(config) not in auto._model_mapping:
        return None
    found = auto._model_mapping[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found
