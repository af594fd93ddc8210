"""transformers' loading of a float checkpoint into packed linear layers, one weight at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from peftlab.quantization.packing.packed_linear import PackedLinear, Packing, packed_linears

METHOD = "peftlab-packing"


class PackingConfig(QuantizationConfigMixin):
    """Argument `quantization_config` of `from_pretrained`."""

    def __init__(self, packing: Packing, keep: Sequence[str], dtype: torch.dtype) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # a name of transformers' own
        self.packing, self.keep, self.dtype = packing, tuple(keep), dtype

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "keep": list(self.keep)}


@register_quantizer(METHOD)
class PackingQuantizer(HfQuantizer):
    """Replaces the linear layers by packed ones, and packs each weight as it is loaded."""

    quantization_config: PackingConfig

    @property
    def quantized_element_size(self) -> float:
        return self.quantization_config.packing.bits / 8

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        module, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(module), PackedLinear)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        config = self.quantization_config
        keep = self.get_modules_to_not_convert(model, list(config.keep), model._keep_in_fp32_modules)  # type: ignore[arg-type]
        for name, module in list(model.named_modules()):
            if type(module) is not nn.Linear and not isinstance(module, Conv1D):
                continue
            if not should_convert_module(name, keep):
                continue
            layer = PackedLinear.replace(module, config.packing, config.dtype)
            if config.packing.incompatible_with((layer.out_features, layer.in_features)) is None:
                model.set_submodule(name, layer)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for layer in packed_linears(model).values():
            if not layer.packed and layer.weight.is_meta:  # a model without weights
                layer.pack(layer.weight)

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack()

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Pack(ConversionOps):
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[torch.Tensor]]:
        for name, weight in input_dict.items():
            layer = kwargs["model"].get_submodule(name.rpartition(".")[0])
            layer.pack(weight[0] if isinstance(weight, list) else weight)
            layer._is_hf_initialized = True  # or transformers draws values for it, and a new head gets others
            for parameter in layer.parameters(recurse=False):
                parameter._is_hf_initialized = True
            kwargs["missing_keys"].discard(name)
        return {}
