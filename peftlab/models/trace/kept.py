"""Stored answers that name other modules than the trace: the names that saved adapters have, at the same places."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from peftlab.models.fact_types import Facts, Sublayer


def _places(attention: Sublayer, feed_forward: Sublayer) -> Callable[[Facts], Facts]:
    return lambda facts: dataclasses.replace(facts, attention=(attention,), feed_forward=(feed_forward,))


_T5 = _places(
    Sublayer(("block.#.layer.0",), "dropout"),
    Sublayer(("encoder.block.#.layer.1", "decoder.block.#.layer.2"), "dropout", residual="layer_norm"),
)
KEPT: dict[str, Callable[[Facts], Facts]] = {
    "bart": _places(
        Sublayer(("layers.#",), "self_attn.out_proj"),
        Sublayer(("layers.#",), "fc2", residual="fc1", norm="final_layer_norm"),
    ),
    "gpt2": _places(
        Sublayer(("h.#",), "attn.resid_dropout"),
        Sublayer(("h.#",), "mlp.dropout", residual="ln_2"),
    ),
    "mbart": _places(
        Sublayer(("layers.#",), "self_attn.out_proj"),
        Sublayer(("layers.#",), "fc2", residual="final_layer_norm"),
    ),
    "mt5": _T5,
    "nemotron_h": lambda facts: dataclasses.replace(
        facts,
        queries_and_values=("q_proj", "k_proj", "v_proj", "o_proj"),  # PEFT's own choice
    ),
    "t5": _T5,
}
"""For each architecture a function of the traced facts."""
