"""Question answering on models: token types through PEFT, predictions and runs."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from peftlab.data.data import SPLITS
from peftlab.loading.model import Base, LoadOptions, head_modules, load_base, load_tokenizer
from peftlab.methods import TrainingPlan
from peftlab.methods.lora import Lora
from peftlab.methods.method import Method
from peftlab.methods.prefix_tuning import PrefixTuning
from peftlab.methods.prompt_tuning import PromptTuning
from peftlab.models.configs import stored_configs
from peftlab.models.model import ModelFiles
from peftlab.models.tiny_model import small_config
from peftlab.quantization.none import NoQuantization
from peftlab.recipe import load_recipe
from peftlab.runs.run import run
from peftlab.tasks.question_answering import QuestionAnswering
from peftlab.training.prediction import predict
from tests.conftest import MINILM
from tests.tasks.questions import CONTEXT, LONG, row

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(minilm: ModelFiles) -> PreTrainedTokenizerBase:
    return load_tokenizer(minilm, QuestionAnswering())


@pytest.fixture
def base(minilm: ModelFiles) -> Base:
    return load_base(
        MINILM, minilm, QuestionAnswering(), NoQuantization(), LoadOptions(device=CPU, compute=torch.float32)
    )


@pytest.mark.parametrize(
    "base", ["google-bert/bert-base-cased", "openai-community/gpt2", "google-t5/t5-small", "facebook/bart-base"]
)
def test_the_head_is_found_in_every_architecture(base: str) -> None:
    config = small_config(stored_configs()[base], 64)
    assert head_modules(AutoModelForQuestionAnswering.from_config(config), QuestionAnswering()) == ("qa_outputs",)


@pytest.mark.parametrize("method", [Lora(rank=4), PrefixTuning(length=4), PromptTuning(length=4)], ids=lambda m: m.kind)
def test_token_types_reach_the_base_through_peft(
    base: Base, tokenizer: PreTrainedTokenizerBase, method: Method
) -> None:
    """PEFT's PeftModelForQuestionAnswering accepts them, but does not pass them on."""
    task = QuestionAnswering()
    batch = task.collate(task.encode([row(), row(context=CONTEXT * 2)], tokenizer, 128).examples, 0)
    inputs = task.model_inputs(batch, base.model)
    assert inputs["token_type_ids"].unique().tolist() == [0, 1]
    base.model.eval()
    with torch.no_grad():
        expected = base.model(**inputs)
        other = base.model(**{**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])})
        assert (expected.start_logits - other.start_logits).abs().max() > 1e-4  # else this test could not fail
        model = method.apply(
            base.model, TrainingPlan(optimizer_steps=10, task_type=task.task_type, head=base.head, longest_input=128)
        ).eval()
        outputs = model(**inputs)
        without_types = model(**{**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])})
        if method.merges:
            assert torch.equal(outputs.start_logits, expected.start_logits)
            assert torch.equal(outputs.end_logits, expected.end_logits)
        with method.disabled(model):
            assert torch.equal(model(**inputs).start_logits, expected.start_logits)
    assert outputs.start_logits.shape == expected.start_logits.shape
    assert (outputs.start_logits - without_types.start_logits).abs().max() > 1e-4


def test_token_types_reach_a_reloaded_base(
    base: Base, tokenizer: PreTrainedTokenizerBase, tmp_path: Any, minilm: ModelFiles
) -> None:
    task, method = QuestionAnswering(), Lora(rank=4)
    inputs = task.model_inputs(task.collate(task.encode([row()], tokenizer, 128).examples, 0), base.model)
    model = method.apply(
        base.model, TrainingPlan(optimizer_steps=10, task_type=task.task_type, head=base.head, longest_input=128)
    ).eval()
    method.save(model, tmp_path)
    again = load_base(MINILM, minilm, task, NoQuantization(), LoadOptions(device=CPU, compute=torch.float32, seed=5))
    loaded = method.load(again.model, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).start_logits, model(**inputs).start_logits)


def test_with_peft_alone_the_base_model_gets_token_types_as_the_model_card_says(
    base: Base, tokenizer: PreTrainedTokenizerBase, tmp_path: Any
) -> None:
    task, method = QuestionAnswering(), Lora(rank=4)
    inputs = task.model_inputs(task.collate(task.encode([row()], tokenizer, 128).examples, 0), base.model)
    plain = copy.deepcopy(base.model)
    model = method.apply(
        base.model, TrainingPlan(optimizer_steps=10, task_type=task.task_type, head=base.head, longest_input=128)
    ).eval()
    method.save(model, tmp_path)
    alone = PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        expected = model(**inputs).start_logits
        assert torch.equal(alone.base_model(**inputs).start_logits, expected)
        assert not torch.allclose(
            alone(**inputs).start_logits, expected, atol=1e-4
        )  # once they are equal, the model card can say so


@pytest.mark.parametrize("tokens", [64, 4096])
def test_there_is_one_prediction_per_row_for_every_batch_size(
    base: Base, tokenizer: PreTrainedTokenizerBase, tokens: int
) -> None:
    task = QuestionAnswering()
    rows = [row(context=LONG), row("1791", question="When?"), row(context=LONG[5:])]
    records = predict(
        base.model,
        task=task,
        examples=task.encode(rows, tokenizer, 64).examples,
        tokenizer=tokenizer,
        batch_tokens=tokens,
        accelerator=Accelerator(),
        autocast=contextlib.nullcontext,
    )
    assert [record["question"] for record in records] == [r.fields["question"] for r in rows]
    assert [record["expected"] for record in records] == ["in Vienna", "1791", "in Vienna"]


RUN = """\
model: {model}
task: {{kind: question_answering, max_length: 64}}
data: {{train: {folder}/train.jsonl, validation: {folder}/held.jsonl, test: {folder}/held.jsonl}}
method: {{kind: lora, rank: 4}}
training: {{steps: 1, precision: float32}}
"""


def test_a_run_counts_rows_not_windows_and_its_predictions_name_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps(dict(row(context=LONG).fields)), json.dumps(dict(row("1791", question="When?").fields))]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "held.jsonl").write_text("\n\n".join(rows))
    (tmp_path / "mine.yaml").write_text(RUN.format(model=MINILM.id, folder=tmp_path))
    result = run(load_recipe(tmp_path / "mine.yaml"), tmp_path / "out")
    assert {split: counts.examples for split, counts in result.splits.items()} == dict.fromkeys(SPLITS, 2)
    assert "train.jsonl: 2 train (" in "".join(capsys.readouterr())
    assert all(counts.tokens > 100 for counts in result.splits.values())  # of all windows
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(r["split"], r["where"], r["question"]) for r in records if r["split"] == "test"] == [
        ("test", "held.jsonl:1", "Where did Mozart live?"),
        ("test", "held.jsonl:3", "When?"),
    ]


def test_an_input_without_target_is_answered(base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering()
    question = task.row_from_text(json.dumps({"question": "Where?", "context": LONG}), "text:1")
    records = predict(
        base.model,
        task=task,
        examples=task.encode([question], tokenizer, 64).examples,
        tokenizer=tokenizer,
        batch_tokens=512,
        accelerator=Accelerator(),
        autocast=contextlib.nullcontext,
    )
    answer = task.answer(records[0])
    assert LONG[answer["start"] : answer["end"]] == answer["answer"]
    assert answer["others"][0]["probability"] <= answer["probability"]
