"""Error lines: names of other libraries lead to the recipe's own."""

import re
from pathlib import Path

import pytest

from peftlab.methods import METHODS
from peftlab.optimizers import OPTIMIZERS
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe, load_recipe
from peftlab.recipe.reference import entries
from peftlab.recipe.synonyms import ADVICE, KEYS, KINDS
from peftlab.tasks import TASKS
from peftlab.training.schedule import CURVES
from tests.recipe.test_recipe import GOOD, refusal, write

DOTTED = re.compile(r"\b(training|task|method|model|data|quantization)\.\w+|\bseeds\b|\binit_from\b")


def test_every_key_of_another_library_leads_to_a_key_that_exists() -> None:
    valid = {entry.key for entry in entries(Recipe)}
    named = {name: DOTTED.search(advice) for name, advice in KEYS.items() if "quantization: " not in advice}
    assert {name for name, key in named.items() if key is None} == {
        name for name, advice in KEYS.items() if advice.startswith(("method: bitfit", "model, "))
    }
    assert [name for name, key in named.items() if key is not None and key.group() not in valid] == []
    assert not ADVICE.keys() & KEYS.keys()


def test_every_other_name_of_a_kind_leads_to_a_kind_that_exists(tmp_path: Path) -> None:
    valid = {*TASKS, *METHODS, *QUANTIZATIONS, *OPTIMIZERS, *CURVES, "wsd", "bfloat16", "float32", "zero"}
    for word, (kind, text) in KINDS.items():
        assert word not in valid
        assert kind in valid, word
        if kind in METHODS:
            recipe = GOOD.replace("method:\n  kind: lora\n  rank: 8", f"method: {text.partition(', with')[0]}")
            assert load_recipe(write(tmp_path, recipe)).method.kind == kind


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  epochs: 1", "  eval_steps: 50", "training.eval_steps: unknown key (use training.evaluate_every); known"),
        ("  epochs: 1", "  batch_size: 8", "training.batch_size: unknown key (use training.batch_examples, "),
        ("  epochs: 1", "  optim: adamw_torch", "training.optim: unknown key (use training.optimizer); known are"),
        ("  epochs: 1", "  optimizer: paged_adamw_32bit", "unknown kind 'paged_adamw_32bit' (use paged_adamw); known"),
        ("  epochs: 1", "  optimizer: adamw_torch_fused", "unknown kind 'adamw_torch_fused' (use adamw); known are"),
        ("  epochs: 1", "  min_lr: 1e-5", "unknown key (use training.minimum_learning_rate, a fraction of the peak)"),
        ("  epochs: 1", "  schedule: warmup_stable_decay", "'constant' or 'wsd' (use wsd), found"),
        ("  rank: 8", "  lora_alpha: 16", "method.lora_alpha: unknown key (use method.alpha); known are"),
        ("  kind: lora\n  rank: 8", "  kind: qlora", "unknown kind 'qlora' (use lora, with quantization: nf4); known"),
        ("token_classification", "text-classification", "unknown kind 'text-classification' (use sequence_classific"),
        ("training:", "quantization: int4\ntraining:", "unknown kind 'int4' (use nf4); known are"),
        ("token_classification", "dpo", "unknown kind 'dpo' (use causal_lm on the preferred answers; training on pref"),
    ],
)
def test_a_name_of_another_library_is_answered_with_the_recipes_own(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in GOOD
    assert says in refusal(tmp_path, GOOD.replace(old, new))
