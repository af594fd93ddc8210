"""Conversion of ONNX weights of T5."""

import numpy as np
import pytest

from peftlab.sources.conversion import t5_onnx


def test_onnx_weights_are_dequantized_and_transposed_for_torch(tmp_path):
    onnx = pytest.importorskip("onnx")
    stored = np.array([[1, -2], [3, 4], [5, 127]], dtype=np.int8)  # three inputs, two outputs
    table = np.array([[130, 128], [128, 255]], dtype=np.uint8)
    arrays = {
        "onnx::MatMul_7_quantized": stored,
        "onnx::MatMul_7_scale": np.float32(0.5),
        "onnx::MatMul_7_zero_point": np.int8(1),
        "enc.embed_tokens.weight_quantized": table,
        "enc.embed_tokens.weight_scale": np.float32(0.25),
        "enc.embed_tokens.weight_zero_point": np.uint8(128),
        "enc.block.0.layer.0.layer_norm.weight": np.float32([1.5, 2.5]),
    }
    inputs = ["x", "onnx::MatMul_7_quantized", "x_zero_point", "onnx::MatMul_7_zero_point"]
    node = onnx.helper.make_node("MatMulInteger", inputs, ["y"], name="/enc/block.0/q/MatMul_quant")
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], tensors)), tmp_path / "e.onnx")
    found = {t5_onnx._place(name): tensor.tolist() for name, tensor in t5_onnx._weights(tmp_path / "e.onnx")}
    assert found == {
        "encoder.block.0.layer.0.layer_norm.weight": [1.5, 2.5],
        "shared.weight": [[0.5, 0.0], [0.0, 31.75]],
        "encoder.block.0.q.weight": [[0.0, 1.0, 2.0], [-1.5, 1.5, 63.0]],
    }
