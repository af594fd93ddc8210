"""Training the task head only."""

from __future__ import annotations

import pytest

from peftlab.errors import UserError
from peftlab.methods import TrainingPlan
from peftlab.methods.head import Head
from peftlab.methods.method import MethodContext
from tests.methods.tiny_bert import TAGS, bert, trainable


def test_head_trains_nothing_but_the_head() -> None:
    assert set(trainable(Head().apply(bert(), TAGS))) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_head_is_refused_without_a_new_head(task_type: str) -> None:
    assert (
        Head().incompatible_with(MethodContext(architecture="gpt2", quantization="none", task_type="TOKEN_CLS")) is None
    )
    reason = Head().incompatible_with(MethodContext(architecture="gpt2", quantization="none", task_type=task_type))
    assert reason is not None
    with pytest.raises(UserError, match="no new head to train"):
        Head().apply(bert(), TrainingPlan(optimizer_steps=4, task_type=task_type))
