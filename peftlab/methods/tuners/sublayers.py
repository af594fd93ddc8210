"""Module names of the two sublayers of a transformer layer in each supported architecture."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class Sublayer:
    """One residual sum `residual + hidden`, and the norm after it if there is one. Names are relative to the layer."""

    layer: str
    """Regular expression for the full name of the layer."""
    hidden: str
    """Last module before the sum; its output is `hidden`."""
    _: KW_ONLY
    residual: str | None = None
    """Module whose first argument is `residual`. None where no adapter variant uses it."""
    norm: str | None = None
    """Norm applied to the sum. None in architectures with norms before the sublayer."""


@dataclass(frozen=True)
class Sublayers:
    """The sublayers of one architecture that can get an adapter."""

    attention: Sublayer
    """Self-attention. Cross-attention gets no adapter, as in AdapterHub."""
    feed_forward: Sublayer


_BERT = Sublayers(
    Sublayer(r"encoder\.layer\.\d+", "attention.output.dropout"),
    Sublayer(r"encoder\.layer\.\d+", "output.dropout", residual="intermediate", norm="output.LayerNorm"),
)
_DISTILBERT = Sublayers(
    Sublayer(r"transformer\.layer\.\d+", "attention.out_lin"),
    Sublayer(r"transformer\.layer\.\d+", "ffn", residual="ffn", norm="output_layer_norm"),
)
_MODERNBERT = Sublayers(Sublayer(r"layers\.\d+", "attn.out_drop"), Sublayer(r"layers\.\d+", "mlp", residual="mlp_norm"))
_GPT2 = Sublayers(Sublayer(r"h\.\d+", "attn.resid_dropout"), Sublayer(r"h\.\d+", "mlp.dropout", residual="ln_2"))
_LLAMA = Sublayers(
    Sublayer(r"layers\.\d+", "self_attn.o_proj"),
    Sublayer(r"layers\.\d+", "mlp", residual="post_attention_layernorm"),
)
_PHI3 = Sublayers(
    Sublayer(r"layers\.\d+", "resid_attn_dropout"),
    Sublayer(r"layers\.\d+", "resid_mlp_dropout", residual="post_attention_layernorm"),
)
_GEMMA2 = Sublayers(  # norms before and after each sublayer, both inside the residual sum
    Sublayer(r"layers\.\d+", "post_attention_layernorm"),
    Sublayer(r"layers\.\d+", "post_feedforward_layernorm", residual="pre_feedforward_layernorm"),
)
_T5 = Sublayers(
    Sublayer(r"block\.\d+\.layer\.0", "dropout"),
    Sublayer(r"(?:encoder\.block\.\d+\.layer\.1|decoder\.block\.\d+\.layer\.2)", "dropout", residual="layer_norm"),
)
# Dropout is a function, not a module, in these two architectures, so the adapters come before it.
_BART = Sublayers(
    Sublayer(r"layers\.\d+", "self_attn.out_proj"),
    Sublayer(r"layers\.\d+", "fc2", residual="fc1", norm="final_layer_norm"),
)
_MBART = Sublayers(
    Sublayer(r"layers\.\d+", "self_attn.out_proj"),
    Sublayer(r"layers\.\d+", "fc2", residual="final_layer_norm"),
)

SUBLAYERS: dict[str, Sublayers] = {  # keys are transformers' model_type
    "bart": _BART,
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mbart": _MBART,
    "mistral": _LLAMA,
    "modernbert": _MODERNBERT,
    "mt5": _T5,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "t5": _T5,
    "xlm-roberta": _BERT,
}
