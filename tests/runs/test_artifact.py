"""The card of a tuned model."""

from __future__ import annotations

import pytest

from peftlab.methods import METHODS
from peftlab.runs.artifact import Card

CASES = [(kind, settings) for kind, method in METHODS.items() for settings in method.test_settings]


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_a_card_is_read_as_it_was_written(kind: str, settings: dict[str, object]) -> None:
    """Its JSON goes through a union's validator, after which a list is no tuple any more."""
    values = {
        **{"model": "a/b", "model_fingerprint": "", "task": "causal_lm", "method": {"kind": kind, **settings}},
        **{"quantization": "nf4", "precision": "float32", "limit": 8, "recipe_digest": ""},
    }
    card = Card.model_validate(values)
    assert Card.model_validate_json(card.model_dump_json()) == card
