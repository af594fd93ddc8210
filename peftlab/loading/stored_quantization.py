"""Checkpoints whose weights are stored quantized: loaded as they are, dequantized, or refused with what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftlab.quantization import QUANTIZATIONS, Quantization

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

DEQUANTIZED = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config", "mxfp8": "FineGrainedFP8Config"}
"""Methods whose weights transformers dequantizes as it loads them, on any device -> its config class."""

READERS = {
    "aqlm": "the package aqlm",
    "auto-round": "the package auto-round",
    "awq": "the package gptqmodel",
    "bitnet": "transformers on a GPU",
    "compressed-tensors": "the package compressed-tensors",
    "eetq": "the package kernels on a GPU",
    "fbgemm_fp8": "the package fbgemm-gpu on a GPU",
    "fouroversix": "the package fouroversix",
    "fp_quant": "the packages fp_quant and qutlass on a GPU",
    "gemma": "transformers, for inference",
    "gptq": "the packages gptqmodel and optimum",
    "higgs": "the package flute-kernel on a GPU",
    "hqq": "the package hqq, without transformers 5",
    "metal": "the package kernels on an Apple GPU",
    "nvfp4": "vLLM; transformers does not load them yet",
    "quanto": "the package optimum-quanto",
    "quark": "the package amd-quark",
    "sinq": "the package sinq",
    "spqr": "the package spqr_quant on a GPU",
    "torchao": "the package torchao, for inference",
    "vptq": "the package vptq on a GPU",
}
"""Other methods -> what reads them. Nothing here was trained over."""


def stored_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`quantization_config` of a config.json, perhaps that of its text model; None if the weights are stored in float.

    >>> stored_quantization({"text_config": {"quantization_config": {"quant_method": "gptq"}}})
    {'quant_method': 'gptq'}
    """
    for part in (config, config.get("text_config") or {}):
        stored = part.get("quantization_config")
        if stored is not None:
            return dict(stored)
    return None


def incompatible_with(config: Mapping[str, Any], quantization: Quantization) -> str | None:
    """Reason in one line why a checkpoint with this config.json cannot be loaded in this quantization, or None."""
    stored = stored_quantization(config)
    if stored is None:
        return None
    method = str(stored.get("quant_method") or "bitsandbytes")
    formats = [each for name, kind in QUANTIZATIONS.items() if (each := kind(kind=name).stored_as(stored)) is not None]
    if formats:
        setting = _setting(formats[0])
        if not quantization.quantizes or quantization.stored_as(stored) == quantization:
            return None
        return f"its weights are stored in {formats[0].kind}: set quantization: {setting}, or none to dequantize them"
    if method in DEQUANTIZED:
        if not quantization.quantizes:
            return None
        return f"its weights are stored in {method}: set quantization: none, which dequantizes them"
    reader = READERS.get(method)
    known = f"which {reader} would read" if reader else "which nothing known here reads"
    return (
        f"its weights are stored in {method}, {known}; peftlab does not train over them: "
        "take the checkpoint in float, with quantization: nf4 or hqq"
    )


def dequantized_from(config: Mapping[str, Any], quantization: Quantization) -> str | None:
    """Method in which the weights are stored, if they are dequantized as they are loaded."""
    stored = stored_quantization(config)
    return None if stored is None or quantization.quantizes else str(stored.get("quant_method") or "bitsandbytes")


def load_kwargs(
    config: PretrainedConfig, quantization: Quantization, keep: Sequence[str], compute: torch.dtype
) -> dict[str, Any]:
    """Complete the `quantization_config` of a config that `incompatible_with` accepts; arguments of `from_pretrained`.

    `keep` and `compute` as in `Quantization.config`.
    """
    import transformers

    stored = stored_quantization(config.to_dict())
    assert stored is not None
    name = DEQUANTIZED.get(str(stored.get("quant_method")))
    if name is not None:
        return {"quantization_config": getattr(transformers, name)(dequantize=True)}
    # transformers takes all settings from the checkpoint, which knows neither this run's head nor its precision.
    own = quantization.config(keep, compute)
    settings = dict(stored) if own is None else own.to_dict()
    settings["llm_int8_skip_modules"] = [*(stored.get("llm_int8_skip_modules") or ()), *keep]
    settings["bnb_4bit_compute_dtype"] = str(compute).removeprefix("torch.")
    config.quantization_config = settings
    return {}


def _setting(quantization: Quantization) -> str:
    settings = quantization.model_dump(exclude_defaults=True)
    if not settings:
        return quantization.kind
    values = {"kind": quantization.kind, **settings}
    return "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in values.items()) + "}"
