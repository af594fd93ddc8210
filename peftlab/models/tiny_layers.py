"""Fewer layers in a config: all its per-layer lists are cut together, and one layer of each kind is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

SHARED = "num_kv_shared_layers"
"""Key with the number of last layers that use the keys and values of an earlier layer."""
MOST = 4
"""Layers of a tiny model whose layers are of several kinds; else there are two."""
COUNT = re.compile(
    r"^(n_layers?|depth|num_(hidden_|encoder_|decoder_)?layers|num_layers_per_stack|num_global_layers|num_blocks"
    r"|(\w+_)?(encoder|decoder)_layers|[lxr]_layers|conf_num_hidden_layers)$"
)
"""Keys with a number of layers."""
INDEXES = re.compile(r"(layers|idxs|ids|indexes|indices)$")
"""Keys with a list of the layers that have some property."""
PERIOD = re.compile(r"(_period|_step|_every_n_layers|_interval|_frequency|layer_group_size|per_attn_res_block)$")
"""Keys that say which layers are of a kind: each second one of two layers."""
FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Number of first layers without experts."""
SPARSE = ("num_sparse_encoder_layers", "num_sparse_decoder_layers", "num_nextn_predict_layers")
"""Numbers of layers of a kind, of which a tiny model has one."""


def cut_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the keys that change if the model has few layers. Nested configs are not looked into.

    >>> cut_layers({"num_hidden_layers": 4, "layer_types": ["sliding", "sliding", "sliding", "full"]})
    {'num_hidden_layers': 2, 'layer_types': ['sliding', 'full']}
    >>> cut_layers({"num_hidden_layers": 4, "moe_layers": [1, 3], "per_layer_config": {"03": {"head_dim": 8}}})
    {'num_hidden_layers': 2, 'moe_layers': [1], 'per_layer_config': {1: {'head_dim': 8}}}
    """
    counts = {key: value for key, value in config.items() if COUNT.search(key) and is_integer(value)}
    small: dict[str, Any] = {}
    for number in dict.fromkeys(count for count in counts.values() if count > 0):
        lists = {key: value for key, value in config.items() if _is_per_layer(key, value, number)}
        kept = _kept_with_shared(number, config, [_kinds(value, number) for value in lists.values()])
        small |= {key: len(kept) for key, count in counts.items() if count == number}
        small |= {key: _cut(value, kept, number) for key, value in lists.items()}
    layers = max([small[key] for key in counts if key in small], default=2)
    return small | _rules({**config, **small}, layers) | _stacks(config, small)


def _rules(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Values of the keys that select layers by a rule."""
    small: dict[str, Any] = {}
    for key, value in config.items():
        if not is_integer(value):
            continue
        if PERIOD.search(key):
            small[key] = min(value, 2)
        elif key in FIRST_DENSE or key in SPARSE or key.endswith("layer_offset"):
            small[key] = min(value, 1)
        elif key in ("moe_layer_end_index", "max_window_layers"):
            small[key] = min(value, layers - 1)
        elif key == SHARED:
            small[key] = 2 if value and layers > 2 else 0
        elif key == "num_self_attends_per_block":
            small[key] = min(value, 2)
    if config.get("attention_types"):  # GPT-Neo: [[types, repetitions]]
        small["attention_types"] = [[config["attention_types"][0][0], 1]]
    if config.get("block_types"):  # RecurrentGemma: a pattern, repeated over the layers
        small["block_types"] = list(dict.fromkeys(config["block_types"]))
    for key in ("block_sizes", "block_repeats", "depths"):  # layers of each block
        if config.get(key):
            small[key] = [1] * len(config[key])
    return small


def _stacks(config: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, int]:
    """Layers in all of a model that repeats a stack of them."""
    stack, layers = (config.get(key) for key in ("num_layers_per_stack", "num_hidden_layers"))
    if not is_integer(stack) or not is_integer(layers) or stack not in config.values():
        return {}
    return {"num_hidden_layers": layers // stack * small["num_layers_per_stack"]}


def _is_per_layer(key: str, value: object, number: int) -> bool:
    if key == "per_layer_config":
        return isinstance(value, Mapping) and bool(value)
    if not isinstance(value, (list, tuple)) or not value or key.endswith("token_id"):
        return False
    return _is_indexes(key, value, number) or len(value) == number


def _is_indexes(key: str, value: Sequence[Any], number: int) -> bool:
    """True if the list holds layer numbers, in ascending order."""
    if not INDEXES.search(key) or not all(is_integer(item) for item in value):
        return False
    return list(value) == sorted(set(value)) and value[0] >= 0 and value[-1] < number


def _kinds(value: Any, number: int) -> list[str]:
    """For each layer its kind, by one list or mapping of the config."""
    if isinstance(value, Mapping):
        by_layer = {int(key): settings for key, settings in value.items() if str(key).isdigit()}
        return [repr(by_layer.get(index)) for index in range(number)]
    if len(value) == number and not _is_range(value):
        return [repr(item) for item in _two_hybrids(value)]
    return [repr(index in value) for index in range(number)]


def _two_hybrids(kinds: Sequence[Any]) -> list[Any]:
    """The kinds, with the second hybrid layer as one of its own: Zamba ties the weights of later ones to the first."""
    second = [index for index, kind in enumerate(kinds) if kind == "hybrid"][1:2]
    return ["second hybrid" if index in second else kind for index, kind in enumerate(kinds)]


def _is_range(value: Sequence[Any]) -> bool:
    return list(value) == list(range(len(value)))


def _kept(number: int, lists: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the layers to keep: the first, and as many as it takes to have one of each kind.

    >>> _kept(4, [["a", "a", "b", "c"]]), _kept(4, [["a", "a", "b", "b"], ["x", "y", "x", "y"]]), _kept(9, [])
    ([0, 2, 3], [0, 3], [0, 1])
    """
    kept = [0]
    while len(kept) < min(MOST, number):
        seen = {(which, kinds[index]) for which, kinds in enumerate(lists) for index in kept}

        def gain(index: int, seen: set[tuple[int, str]] = seen) -> int:
            return sum((which, kinds[index]) not in seen for which, kinds in enumerate(lists))

        best = max(range(number), key=gain)  # the first of equals
        if gain(best) == 0:
            break
        kept.append(best)
    missing = [index for index in range(number) if index not in kept]
    return sorted(kept + missing[: max(0, 2 - len(kept))])


def _kept_with_shared(number: int, config: Mapping[str, Any], lists: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the layers to keep; with one of each type among the last, if these share keys and values of others."""
    shared, types = config.get(SHARED), config.get("layer_types")
    if not shared or not isinstance(types, (list, tuple)) or len(types) != number or shared >= number:
        return _kept(number, lists)
    own = number - shared
    first = [types.index(kind) for kind in dict.fromkeys(types[:own])]
    last = [own + types[own:].index(kind) for kind in dict.fromkeys(types[own:])]
    return sorted([*first, *last]) if len(first) == len(last) == 2 else _kept(number, lists)


def _cut(value: Any, kept: Sequence[int], number: int) -> Any:
    if isinstance(value, Mapping):
        by_layer = {int(key): settings for key, settings in value.items() if str(key).isdigit()}
        return {new: by_layer[old] for new, old in enumerate(kept) if old in by_layer}
    if len(value) == number and not _is_range(value):
        return [value[index] for index in kept]
    return [new for new, old in enumerate(kept) if old in value]


def is_integer(value: object) -> TypeGuard[int]:
    """True for a number that is no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
