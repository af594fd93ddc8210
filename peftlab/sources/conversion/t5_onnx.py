"""flan-t5-small from two ONNX graphs with dynamic int8 quantization, converted to 190 float32 tensors.

onnxruntime stores one scale and one zero point per matrix: weight = (stored - zero point) * scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CONFIG = {  # config.json of google/flan-t5-small
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
TOKENS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 512,
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def convert(source: Path, target: Path) -> None:
    """Convert encoder.onnx, decoder.onnx and tokenizer.json to a T5ForConditionalGeneration."""
    from safetensors.numpy import save

    weights: dict[str, np.ndarray] = {}
    for graph in ("encoder", "decoder"):
        for name, tensor in _weights(source / f"{graph}.onnx"):
            place = _place(name)
            if place in weights and not (weights[place] == tensor).all():
                raise UserError(f"{graph}.onnx: tensor {place!r} differs from that in encoder.onnx")
            weights[place] = tensor
    # Not save_file, which raises an error of its own on a full disk.
    (target / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write(target / "config.json", CONFIG | TOKENS)
    _write(target / "generation_config.json", TOKENS)
    _write(target / "tokenizer_config.json", TOKENIZER)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    _write(target / "tokenizer.json", tokenizer | {"truncation": None, "padding": None})


def _weights(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of every weight of the graph, in torch's layout. Names are those of modules or nodes."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError(
            f"{path.name}: conversion requires the package onnx: pip install 'peftlab[conversion]'"
        ) from None
    import numpy as np

    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(stored[name])

    def dequantized(name: str) -> np.ndarray:
        base = name.removesuffix("_quantized")
        shifted = array(name).astype(np.float32) - array(f"{base}_zero_point").astype(np.float32)
        return shifted * array(f"{base}_scale").astype(np.float32)

    for name in stored:
        if name.endswith("layer_norm.weight"):
            yield name, array(name)
        elif name.endswith(".weight_quantized"):
            yield name.removesuffix("_quantized"), dequantized(name)
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in stored:
            name = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            yield f"{name}.weight", np.ascontiguousarray(dequantized(node.input[1]).T)  # ONNX stores (in, out)


def _place(name: str) -> str:
    """Name of a weight in transformers.

    >>> _place("enc.embed_tokens.weight"), _place("m.lm_head.weight")
    ('shared.weight', 'lm_head.weight')
    """
    name = re.sub(r"^enc\.", "encoder.", name.removeprefix("m."))
    return re.sub(r"^(encoder|decoder)\.embed_tokens\.", "shared.", name)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
