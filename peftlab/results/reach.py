"""Reach of a run: the fractions of the trunk that its method adapts and its quantization packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from peftlab.component import Settings

FULL = 0.95
"""Fraction from which on no warning is given: routers and other small parameters may be left out."""
SHOWN = 3  # groups of weights that a sentence names


class Reach(Settings):
    """Fractions of the trunk's matrix weights, those outside of embeddings, output embedding and head."""

    weights: int
    """Number of the trunk's matrix weights."""
    adapted: float | None
    """Fraction of them that the method adapts or trains; null if it adapts no weight matrices."""
    not_adapted: dict[str, float] = Field(default={})
    """Fractions of the others, by group."""
    layers: float | None = None
    """Fraction of the transformer layers to which the method adds something, if it works by layers."""
    packed: float | None = None
    """Fraction that the quantization packs; null without quantization."""
    not_packed: dict[str, float] = Field(default={})
    """Fractions of the others, by group."""

    def of_method(self, title: str, acts_on: str, *, by_choice: bool) -> str:
        """Sentence on a method that acts on `acts_on`; a warning unless what it leaves out is left out by choice."""
        if self.layers is not None:
            return f"{title} is in {_percent(self.layers)} of the layers"
        if self.adapted is None:
            return f"{title} acts on {acts_on}, not on weight matrices"
        left_out = _left_out(self.adapted, self.not_adapted, "" if by_choice else "warning: ")
        return f"{title} adapts {_of_the_trunk(self.adapted)}{left_out}"

    def of_quantization(self, title: str) -> str | None:
        """Sentence on the quantization, with a warning if it packs only a part; None without quantization."""
        if self.packed is None:
            return None
        return f"{title} packs {_of_the_trunk(self.packed)}{_left_out(self.packed, self.not_packed, 'warning: ')}"

    def notes(self, method: str, quantization: str) -> Iterator[str]:
        """Footnotes for what is not reached in full."""
        if self.layers is not None and self.layers < 1:
            yield f"{method} is in {_percent(self.layers)} of the layers"
        if self.adapted is not None and self.adapted < 1:
            yield f"{method} adapts {_of_the_trunk(self.adapted)}, without {_groups(self.not_adapted)}"
        if self.packed is not None and self.packed < 1:
            yield f"{quantization} packs {_of_the_trunk(self.packed)}, without {_groups(self.not_packed)}"


def _of_the_trunk(fraction: float) -> str:
    return f"{_percent(fraction)} of the trunk's matrix weights"


def _percent(fraction: float) -> str:
    """
    >>> _percent(1.0), _percent(0.9996), _percent(0.25)
    ('100 %', '> 99.9 %', '25.0 %')
    """
    return "100 %" if fraction == 1 else "> 99.9 %" if fraction >= 0.9995 else f"{100 * fraction:.1f} %"


def _groups(groups: Mapping[str, float]) -> str:
    shown = [f"{_percent(fraction)} {group}" for group, fraction in list(groups.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else "")


def _left_out(fraction: float, groups: Mapping[str, float], prefix: str) -> str:
    return "" if fraction >= FULL else f"; {prefix}left out are {_groups(groups)}"
