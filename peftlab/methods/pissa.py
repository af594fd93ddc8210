"""LoRA initialized with factors of the weight itself, whose product is subtracted from the base.

PiSSA (Meng et al., 2024) takes the weight's principal components, OLoRA (Büyükakyüz, 2024) the first columns of its QR
decomposition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError
from peftlab.methods.adapted import targets_as_given

TITLES = {"pissa": "PiSSA", "olora": "OLoRA"}

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    Factors = Mapping[str, Tensor]
    """A and B by the full name of the parameter."""


def check_layers(model: PreTrainedModel, ranks: Mapping[str, int], initialization: str) -> None:
    """Raise UserError if a layer has fewer singular values than its rank, or the wrong layout for `initialization`."""
    from transformers.pytorch_utils import Conv1D

    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        values = min(layer.weight.shape)  # type: ignore[arg-type]
        if rank > values:
            raise UserError(
                f"method.rank: {rank}, but {name} has {values} singular values for {TITLES[initialization]}"
            )
        if initialization == "olora" and isinstance(layer, Conv1D):
            raise UserError(
                f"method.initialization: PEFT's OLoRA decomposes {name} transposed, because its weight is stored as "
                "(in, out); use pissa"
            )


def store_initial_factors(model: PeftModel) -> None:
    """Store copies of A and B on the model. Call before training; `save_as_lora` needs them."""
    model.pissa_initial_factors = {name: p.detach().clone() for name, p in _factors(model).items()}  # type: ignore[assignment]


def initial_factors(model: nn.Module) -> Factors | None:
    """A and B before training, or None if the model was not initialized by PiSSA."""
    return getattr(model, "pissa_initial_factors", None)


def save_as_lora(model: nn.Module, folder: Path) -> None:
    """Rewrite a saved PiSSA adapter as a LoRA adapter of twice the rank for the unmodified base model.

    PiSSA subtracts the initial product B0 A0 from the base model, so B A alone does not fit the published weights.
    [B, -B0] [A; A0] does, without another singular value decomposition (PiSSA paper, section 3).
    """
    import torch
    from safetensors.torch import load_file, save_file

    initial = initial_factors(model)
    assert initial is not None
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, factor in initial.items():
        key = name.replace(".default", "")
        if ".lora_A." in name:
            tensors[key] = torch.cat([tensors[key], factor.cpu()], dim=0)
        else:
            tensors[key] = torch.cat([tensors[key], -factor.cpu()], dim=1)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    # Keep the scale unchanged: alpha / r, or alpha / sqrt(r) under rsLoRA.
    growth = 2**0.5 if config["use_rslora"] else 2
    config |= {"r": config["r"] * 2, "lora_alpha": config["lora_alpha"] * growth, "init_lora_weights": True}
    config["rank_pattern"] = {name: rank * 2 for name, rank in config["rank_pattern"].items()}
    config["alpha_pattern"] = {name: alpha * growth for name, alpha in config["alpha_pattern"].items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def load_from_lora(base: PreTrainedModel, folder: Path, *, sizes: Mapping[str, Any], trainable: bool) -> PeftModel:
    """Subtract B0 A0 from a fresh base model as before training, and add B A: bit for bit the model that was saved.

    `sizes` are the keys of PEFT's config that `save_as_lora` changed, as the recipe has them. Loading the file as the
    LoRA adapter it contains would give the same model up to rounding.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import transpose
    from safetensors.torch import load_file

    config: Any = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    for key, value in sizes.items():
        setattr(config, key, value)
    with targets_as_given():
        model: PeftModel = get_peft_model(base, config)
    trained, initial = {}, {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        trained[name] = tensor
        if ".lora_A." in name:
            trained[name], initial[name] = tensor.chunk(2, dim=0)
        elif ".lora_B." in name:
            trained[name], negative = tensor.chunk(2, dim=1)
            initial[name] = -negative
    set_peft_model_state_dict(model, trained)
    factors = {name: initial[name.replace(".default", "")].to(p) for name, p in _factors(model).items()}
    model.pissa_initial_factors = factors  # type: ignore[assignment]
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            a, b = (factors[f"{name}.lora_{part}.default.weight"] for part in "AB")
            weight = layer.get_base_layer().weight
            residual = transpose(weight.data, layer.fan_in_fan_out)
            residual = residual - layer.scaling["default"] * b @ a  # PEFT's order of operations, for the same rounding
            weight.data = transpose(residual, layer.fan_in_fan_out)
    return model.train(trainable)


def _factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}
