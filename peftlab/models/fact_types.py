"""Types of the facts about an architecture, their JSON form, and patterns of module names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sublayer:
    """One residual sum `residual + hidden`, and the norm after it if there is one.

    `layers` are patterns of full names, as for `matching`; the other names are relative to the layer.
    """

    layers: tuple[str, ...]
    """Patterns for the full names of the layers that have it."""
    hidden: str
    """Last module before the sum; its output, or the first part of it, is `hidden`."""
    _: KW_ONLY
    residual: str | None = None
    """Module whose first argument is `residual`. None where no adapter variant uses it."""
    norm: str | None = None
    """Norm applied to the sum. None in architectures with norms before the sublayer."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Answers for one architecture. Patterns are as for `matching`."""

    attention: tuple[Sublayer, ...] = ()
    """Ends of self-attention, or of what takes its place: a convolution, a state space."""
    feed_forward: tuple[Sublayer, ...] = ()
    """Ends of the feed-forward sublayers."""
    keys_and_values: tuple[str, ...] = ()
    """Patterns of the linear layers that make keys and values."""
    inside_feed_forward: tuple[str, ...] = ()
    """Patterns of the last linear layers of the feed-forward sublayers."""
    queries_and_values: tuple[str, ...] = ()
    """Patterns of the linear layers that make queries and values."""
    biases: bool = True
    """True if a bias of the trunk gets a gradient."""
    encoder_decoder: bool = False
    """True if the base is an encoder and a decoder."""
    last_token: bool = False
    """True if a sequence is classified at its last token, which is found by its id."""
    after_padding: bool = False
    """True if position ids start after the padding token's."""
    unlimited: bool = False
    """True if positions are relative and the config's number of positions is not used."""
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Linear layers that no adapter can train, by task type: patterns, each with the reason."""
    no_prefix: Mapping[str, str] = field(default_factory=dict)
    """Reasons why the base takes no key-values from outside, by task type."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Reasons why answers are missing: by field, by task type, or under `model` for all of them."""

    def reason(self, *questions: str) -> str:
        """Reason why an answer is missing."""
        reasons = [self.unknown[key] for key in (*questions, "model") if key in self.unknown]
        return reasons[0] if reasons else "it has none"


def from_json(entry: Mapping[str, Any]) -> Facts:
    """Facts from what `to_json` returned."""
    values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in entry.items()}
    values.pop("architectures", None)
    for name in ("attention", "feed_forward"):
        values[name] = tuple(
            Sublayer(tuple(each["layers"]), each["hidden"], residual=each.get("residual"), norm=each.get("norm"))
            for each in entry.get(name, ())
        )
    return Facts(**values)


def to_json(facts: Facts) -> dict[str, Any]:
    """Values that differ from the defaults."""
    entry: dict[str, Any] = {}
    for name, default in vars(Facts()).items():
        value = getattr(facts, name)
        if value == default:
            continue
        if name in ("attention", "feed_forward"):
            value = [
                {key: part for key, part in vars(each).items() if part is not None} | {"layers": list(each.layers)}
                for each in value
            ]
        entry[name] = list(value) if isinstance(value, tuple) else value
    return entry


def expression(pattern: str) -> str:
    r"""Regular expression of a pattern, without the parts of the name before it.

    >>> expression("encoder.layer.#")
    'encoder\\.layer\\.\\d+'
    """
    return re.escape(pattern).replace(r"\#", r"\d+").replace(r"\$", r"(?P<last>\d+)")


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Names that equal a pattern, or end in a dot and one; `#` is a number, `$` the largest one in its place.

    >>> matching(["bert.encoder.layer.0.output.dense", "bert.pooler.dense"], ["layer.#.output.dense"])
    ['bert.encoder.layer.0.output.dense']
    >>> matching(["layer.0.key", "layer.1.key", "layer.1.query"], ["layer.$.key"])
    ['layer.1.key']
    """
    names, patterns = list(names), list(patterns)
    alternatives = "|".join(expression(pattern) for pattern in patterns if "$" not in pattern)
    compiled = re.compile(rf"(?:.*\.)?(?:{alternatives})")
    found = {name for name in names if compiled.fullmatch(name)} if alternatives else set()
    found |= {name for pattern in patterns if "$" in pattern for name in _of_last(names, pattern)}
    return [name for name in names if name in found]


def _of_last(names: Iterable[str], pattern: str) -> set[str]:
    """Names that match a pattern with the largest number in place of its `$`, of each list of modules."""
    compiled = re.compile(rf"(?:.*\.)?(?:{expression(pattern)})")
    matches = [match for name in names if (match := compiled.fullmatch(name))]
    last: dict[str, int] = {}
    for match in matches:
        owner = match.string[: match.start("last")]
        last[owner] = max(int(match["last"]), last.get(owner, 0))
    return {match.string for match in matches if int(match["last"]) == last[match.string[: match.start("last")]]}
