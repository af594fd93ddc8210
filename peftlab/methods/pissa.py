"""PiSSA (Meng et al., 2024): LoRA that starts as a weight's principal components, which are taken out of the base."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    Start = dict[str, Tensor]  # A and B as they were at the start, by the parameter's full name


def check_rank(model: PreTrainedModel, layers: Iterable[str], rank: int) -> None:
    for name in layers:
        values = min(model.get_submodule(name).weight.shape)  # type: ignore[arg-type]
        if rank > values:
            raise UserError(f"method.rank: {rank}, but {name} has {values} singular values for PiSSA")


def remember_start(model: PeftModel) -> None:
    """To be called before training: what `save_as_difference` must subtract again."""
    model.pissa_start = {name: p.detach().clone() for name, p in _factors(model).items()}  # type: ignore[assignment]


def start_of(model: nn.Module) -> Start | None:
    return getattr(model, "pissa_start", None)


def save_as_difference(model: nn.Module, folder: Path) -> None:
    """Rewrite a saved PiSSA adapter as a LoRA of twice the rank on the untouched base.

    PiSSA moves B0 A0 out of the base, so B A alone does not fit the published base. [B, -B0] [A; A0] does, without
    computing a singular value decomposition again (PiSSA paper, section 3).
    """
    import torch
    from safetensors.torch import load_file, save_file

    start = start_of(model)
    assert start is not None
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, first in start.items():
        saved = name.replace(".default", "")
        if ".lora_A." in name:
            tensors[saved] = torch.cat([tensors[saved], first.cpu()], dim=0)
        else:
            tensors[saved] = torch.cat([tensors[saved], -first.cpu()], dim=1)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    # The scale stays: alpha / r, or alpha / sqrt(r) under rsLoRA.
    growth = 2**0.5 if config["use_rslora"] else 2
    config |= {"r": config["r"] * 2, "lora_alpha": config["lora_alpha"] * growth, "init_lora_weights": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def load_difference(base: PreTrainedModel, folder: Path, *, rank: int, alpha: float, trainable: bool) -> PeftModel:
    """Take B0 A0 out of a fresh base as PiSSA did, and put B A beside it: the same bits as when it was saved.

    As the LoRA that is in the file, the model would be the same but for rounding.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import transpose
    from safetensors.torch import load_file

    config: Any = LoraConfig.from_pretrained(str(folder))
    config.r, config.lora_alpha, config.inference_mode = rank, alpha, not trainable
    model: PeftModel = get_peft_model(base, config)
    trained, first = {}, {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        trained[name] = tensor
        if ".lora_A." in name:
            trained[name], first[name] = tensor[:rank], tensor[rank:]
        elif ".lora_B." in name:
            trained[name], first[name] = tensor[:, :rank], -tensor[:, rank:]
    set_peft_model_state_dict(model, trained)
    start = {name: first[name.replace(".default", "")].to(p) for name, p in _factors(model).items()}
    model.pissa_start = start  # type: ignore[assignment]
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            a, b = (start[f"{name}.lora_{part}.default.weight"] for part in "AB")
            weight = layer.get_base_layer().weight
            residual = transpose(weight.data, layer.fan_in_fan_out)
            residual = residual - layer.scaling["default"] * b @ a  # in PEFT's order, so that it rounds as PEFT's
            weight.data = transpose(residual, layer.fan_in_fan_out)
    return model.train(trainable)


def _factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}
