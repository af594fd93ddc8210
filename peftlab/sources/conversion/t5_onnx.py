"""flan-t5-small out of two ONNX graphs with dynamic int8 weights, written in float32: 190 tensors by their node names.

onnxruntime's quantiser keeps a scale and a zero point a matrix: weight = (stored - zero point) * scale.
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

CONFIG = {  # of google/flan-t5-small
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
    """encoder.onnx, decoder.onnx and tokenizer.json into a T5ForConditionalGeneration."""
    from safetensors.numpy import save

    weights: dict[str, np.ndarray] = {}
    for graph in ("encoder", "decoder"):
        for name, tensor in _weights(source / f"{graph}.onnx"):
            place = _place(name)
            if place in weights and not (weights[place] == tensor).all():
                raise UserError(f"{graph}.onnx: another tensor {place!r} than in encoder.onnx")
            weights[place] = tensor
    # Not save_file, whose error on a full disk is one of its own.
    (target / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write(target / "config.json", CONFIG | TOKENS)
    _write(target / "generation_config.json", TOKENS)
    _write(target / "tokenizer_config.json", TOKENIZER)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    _write(target / "tokenizer.json", tokenizer | {"truncation": None, "padding": None})


def _weights(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight of the graph in float32 as torch has it, under the name that its module or node bears."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError(
            f"{path.name}: reading it needs the package onnx, once: pip install 'peftlab[conversion]'"
        ) from None
    import numpy as np

    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(stored[name])

    def dequantized(name: str) -> np.ndarray:
        base = name.removesuffix("_quantized")
        whole = array(name).astype(np.float32) - array(f"{base}_zero_point").astype(np.float32)
        return whole * array(f"{base}_scale").astype(np.float32)

    for name in stored:
        if name.endswith("layer_norm.weight"):
            yield name, array(name)
        elif name.endswith(".weight_quantized"):
            yield name.removesuffix("_quantized"), dequantized(name)
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in stored:
            name = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            yield f"{name}.weight", np.ascontiguousarray(dequantized(node.input[1]).T)  # ONNX multiplies from the right


def _place(name: str) -> str:
    """transformers' name of a weight.

    >>> _place("enc.embed_tokens.weight"), _place("m.lm_head.weight")
    ('shared.weight', 'lm_head.weight')
    """
    name = re.sub(r"^enc\.", "encoder.", name.removeprefix("m."))
    return re.sub(r"^(encoder|decoder)\.embed_tokens\.", "shared.", name)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
