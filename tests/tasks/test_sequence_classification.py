"""Sequence classification: labels, losses by hand, inputs, answers and scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, BertConfig, BertForMaskedLM, BertForSequenceClassification

import peftlab.loading.model
from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.loading.model import load_base, load_tokenizer
from peftlab.methods import METHODS, TrainingPlan
from peftlab.metrics import score
from peftlab.models.model import Model, ModelFiles
from peftlab.models.tiny_model import byte_tokenizer
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe, load_recipe
from peftlab.runs import scoring
from peftlab.runs.run import run
from peftlab.tasks.sequence_classification import SequenceClassification as Task
from peftlab.tasks.task import IGNORED
from tests.contract.bases import tiny
from tests.sampling import slow_after


def row(label: Any = "pos", text: Any = "a good film", line: int = 7, **fields: Any) -> Row:
    return Row(f"mine.jsonl:{line}", {"text": text, "label": label, **fields})


def rows(*labels: Any) -> list[Row]:
    return [row(label, f"text {i}", i + 1) for i, label in enumerate(labels)]


def outputs(logits: Any) -> Any:
    return SimpleNamespace(logits=torch.tensor(logits))


def targets(task: Task, rows: list[Row]) -> dict[str, torch.Tensor]:
    return {"labels": task._targets(rows)}


# Labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 2, 2], ["2", "10"]),
        (["10", "2", "x"], ["2", "10", "x"]),  # as a CSV file has them
        ([True, False], ["false", "true"]),
        ([1.0, 0.0], ["0", "1"]),
        (["pos", "neg ", " pos", "neg"], ["neg", "pos"]),
        ([-1, 0, 1], ["-1", "0", "1"]),
    ],
)
def test_inferred_labels_are_strings_and_sorted(values: list[Any], labels: list[str]) -> None:
    assert Task().bind(rows(*values)).labels == labels
    assert Task().bind(rows(*values[::-1])).labels == labels


def test_listed_labels_keep_their_order_and_may_be_numbers() -> None:
    assert Task.model_validate({"labels": ["pos", "neg"]}).bind(rows("neg", "pos")).labels == ["pos", "neg"]
    assert Task.model_validate({"labels": [1, 0]}).bind(rows(0, "1")).labels == ["1", "0"]


def test_a_label_that_is_not_in_train_names_file_and_line() -> None:
    task = Task().from_training(rows("pos", "neg"))
    with pytest.raises(
        UserError, match=r"mine.jsonl:7: label: 'poz' is not a label .* \(did you mean 'pos'\?\); known are"
    ):
        task.bind([*rows("pos", "neg"), row("poz")])


@pytest.mark.parametrize(
    ("task", "bad", "says"),
    [
        ({}, row(1.5), "label: a string or an integer was expected, found 1.5; for numbers set task.problem: regre"),
        ({}, row(["pos"]), "label: one label was expected, found \"['pos']\"; for several set task.problem: multi"),
        ({}, row(None), "label: a string or an integer was expected, found None"),
        ({}, row(" "), "label: a string or an integer was expected, found ' '"),
        ({}, row(text=" "), "text: an empty text"),
        ({}, row(text=3), "text: a string was expected, found '3'"),
        ({"input": "text"}, row(text_pair="b"), "text_pair: not expected: the input is 'text'"),
        ({"input": "pair"}, row(), "text_pair: missing: the input is 'pair'"),
        ({"input": "pair"}, row(text_pair=" "), "text_pair: an empty text"),
        ({"input": "entities"}, row(head=[0, 1]), "tail: missing: the input is 'entities'"),
        ({"input": "entities"}, row(head=[0, 1], tail=[3, 12]), "tail: [start, end) within the text's 11 characters"),
        ({"input": "entities"}, row(head=[2, 2], tail=[3, 5]), "head: [start, end) within the text's 11 characters"),
        ({"input": "entities"}, row(text=["a", "b"], head=[0, 1], tail=[1, 3]), "tail: [start, end) within the text's"),
        ({"input": "entities"}, row(text=["a", ""], head=[0, 1], tail=[1, 2]), "text: a string or a list of words"),
        ({"problem": "multi_label"}, row("pos"), "label: a list of labels was expected, found 'pos'"),
        ({"problem": "multi_label"}, row([None]), "label: a string or an integer was expected, found None"),
        ({"problem": "regression"}, row("high"), "label: a number was expected, found 'high'"),
        ({"problem": "regression"}, row(math.nan), "label: a number was expected, found 'nan'"),
        ({"problem": "regression"}, row(True), "label: a number was expected, found 'True'"),
    ],
)  # fmt: skip
def test_a_bad_row_names_file_line_and_field(task: dict[str, Any], bad: Row, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Task(**task).bind([bad])
    assert str(caught.value).startswith(f"mine.jsonl:7: {says}")
    assert "\n" not in str(caught.value)


def test_data_with_one_label_or_with_numbers_for_labels_is_refused() -> None:
    with pytest.raises(UserError, match="every label is 'pos': there is nothing to learn"):
        Task().from_training(rows("pos", "pos"))
    with pytest.raises(
        UserError, match=r"60 different labels in 60 training rows, e.g. '0.00'; set task.problem: regression"
    ):
        Task().from_training(rows(*(f"{i / 100:.2f}" for i in range(60))))


@pytest.mark.parametrize(
    ("settings", "labels", "found"),
    [
        ({"labels": ["neg", "pos"]}, ["pos", "pos"], "'pos'"),
        ({"problem": "multi_label", "labels": ["a", "b"]}, [["a", "b"], ["a", "b"]], "'a, b'"),
        ({"problem": "multi_label", "labels": ["a", "b"]}, [[], []], "'none'"),
        ({"problem": "regression"}, [0.5, "0.50"], "'0.5'"),
    ],
)
def test_training_rows_with_the_same_label_are_refused_though_others_are_listed(
    settings: dict[str, Any], labels: list[Any], found: str
) -> None:
    task = Task.model_validate(settings).bind(rows(*labels))
    with pytest.raises(UserError, match=f"^data: every label of train is {found}: there is nothing to learn$"):
        task.check_training_rows(rows(*labels))


def test_a_label_that_no_training_row_has_causes_a_remark() -> None:
    task = Task(labels=["a", "b", "c"]).bind(rows("a", "b", "c"))
    assert task.check_training_rows(rows("a", "b")) == "c: no training row has this label, so it is never learned"
    assert task.check_training_rows(rows("a", "b", "c")) is None
    regression = Task(problem="regression")
    assert regression.check_training_rows(rows(0.5, 1)) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"problem": "regression", "labels": ["a", "b"]}, "a regression has no labels"),
        ({"problem": "regression", "label_smoothing": 0.1}, "are for problem: single_label"),
        ({"problem": "multi_label", "class_weights": "balanced"}, "are for problem: single_label"),
        ({"labels": ["a", "a"]}, "'a' is listed twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Task(**settings)


# Targets and losses


def test_the_loss_is_the_sum_of_cross_entropies_over_texts_with_a_label() -> None:
    task = Task().bind(rows("a", "b"))
    batch = targets(task, [row("b"), row("a"), row(None)])
    logits = [[0.0, math.log(3)], [0.0, math.log(3)], [5.0, 0.0]]
    assert batch["labels"].tolist() == [1, 0, IGNORED]
    assert int(task.count_targets(batch)) == 2
    assert float(task.loss(outputs(logits), batch)) == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))
    nothing = task.without_targets(batch)
    assert (float(task.loss(outputs(logits), nothing)), int(task.count_targets(nothing))) == (0.0, 0)


def test_label_smoothing_spreads_a_fraction_of_each_target_evenly() -> None:
    task = Task(label_smoothing=0.2).bind(rows("a", "b"))
    loss = task.loss(outputs([[0.0, math.log(3)]]), targets(task, [row("b")]))
    assert float(loss) == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_class_weights_multiply_the_loss_and_default_to_1() -> None:
    task = Task(class_weights={"b": 3.0}).bind(rows("a", "b"))
    logits = outputs([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert float(task.loss(logits, targets(task, rows("b", "a")))) == pytest.approx(
        -3 * math.log(3 / 4) - math.log(1 / 4)
    )
    both = task.model_copy(update={"label_smoothing": 0.2})  # the smoothed part has the other class's weight
    loss = both.loss(outputs([[0.0, math.log(3)]]), targets(both, [row("b")]))
    assert float(loss) == pytest.approx(-0.9 * 3 * math.log(3 / 4) - 0.1 * 1 * math.log(1 / 4))


def test_balanced_weights_are_counted_in_the_training_rows_only() -> None:
    train, everything = rows("a", "a", "a", "b"), rows("a", "a", "a", "b", "b", "b", "b")
    task = Task(class_weights="balanced").from_training(train).bind(everything)
    assert task.class_weights == {"a": pytest.approx(4 / (2 * 3)), "b": pytest.approx(4 / (2 * 1))}
    # The mean weight of the training examples is 1.
    uniform = outputs([[0.0, 0.0]] * 4)
    assert float(task.loss(uniform, targets(task, train))) == pytest.approx(4 * math.log(2))


def test_a_weight_for_an_unknown_label_is_refused() -> None:
    with pytest.raises(UserError, match=r"task.class_weights: unknown label 'poss' \(did you mean 'pos'\?\)"):
        Task(class_weights={"poss": 2.0}).bind(rows("pos", "neg"))


def test_several_labels_are_scored_by_binary_cross_entropy() -> None:
    task = Task(problem="multi_label").bind(rows(["b", "a"], []))
    batch = targets(task, [row(["b"]), row([]), row(None)])
    assert batch["labels"].tolist() == [[0, 1], [0, 0], [IGNORED, IGNORED]]
    assert int(task.count_targets(batch)) == 4
    logits = torch.tensor([[0.5, 2.0], [-1.0, 0.0], [9.0, 9.0]])
    by_hand = sum(
        -functional.logsigmoid(logits[i, j] if yes else -logits[i, j])
        for i, j, yes in ((0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0))
    )
    assert float(task.loss(SimpleNamespace(logits=logits), batch)) == pytest.approx(float(by_hand))
    assert float(task.loss(SimpleNamespace(logits=logits), task.without_targets(batch))) == 0


def test_a_regression_sums_squared_errors_and_any_number_may_be_a_target() -> None:
    task = Task(problem="regression").bind(rows("0.5", -100, 2))
    batch = targets(task, [*rows("0.5", IGNORED), row(None)])  # -100 is an ordinary number here
    assert int(task.count_targets(batch)) == 2
    assert float(task.loss(outputs([[1.0], [-98.0], [7.0]]), batch)) == pytest.approx(0.25 + 4)
    nothing = task.without_targets(batch)
    assert (float(task.loss(outputs([[1.0], [-98.0], [7.0]]), nothing)), int(task.count_targets(nothing))) == (0.0, 0)


# Inputs


def test_a_pair_is_encoded_as_two_segments(minilm: ModelFiles) -> None:
    task = Task().bind([row(text_pair="it was fun"), row("neg", text_pair="no")])
    assert task.input == "pair"
    tokenizer = load_tokenizer(minilm, task)
    examples = task.encode([row(text_pair="it was fun"), row("neg", text_pair="no")], tokenizer, 64).examples
    assert tokenizer.decode(examples[0].features["input_ids"]) == "[CLS] a good film [SEP] it was fun [SEP]"
    assert examples[0].features["token_type_ids"] == [0] * 5 + [1] * 4
    batch = task.collate(examples, 0)
    assert batch["token_type_ids"].tolist()[1] == [0] * 5 + [1] * 2 + [0] * 2
    assert batch["attention_mask"].sum().item() == 9 + 7


@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [("Ada lived in Ulm.", [0, 3], [13, 16]), (["Ada", "lived", "in", "Ulm", "."], [0, 1], [3, 4])],
)
def test_entities_are_marked_by_text_without_new_tokens(
    text: Any, head: list[int], tail: list[int], minilm: ModelFiles
) -> None:
    relation = row("lived_in", text, head=head, tail=tail)
    task = Task(labels=["lived_in", "none"]).bind([relation])
    assert task.input == "entities"
    tokenizer = load_tokenizer(minilm, task)
    before = len(tokenizer)
    ids = task.encode([relation], tokenizer, 64).examples[0].features["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("[CLS]", "@", "ada", "@", "lived", "in", "#", "ul", "##m", "#", ".", "[SEP]")
    ]
    assert len(tokenizer) == before


def test_a_special_token_in_a_text_is_encoded_as_text(minilm: ModelFiles) -> None:
    task = Task().bind(rows("a", "b"))
    tokenizer = load_tokenizer(minilm, task)
    ids = task.encode([row(None, "so [SEP] what")], tokenizer, 64).examples[0].features["input_ids"]
    assert ids.count(tokenizer.sep_token_id) == 1
    # Encoder-decoders classify by the end token, and refuse a batch in which texts differ in their number.
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "decoder_start_token_id": 0}
    model = tiny("t5", "AutoModelForSequenceClassification", vocab_size=512, **sizes)
    model.config.eos_token_id = 1
    ends = byte_tokenizer(model.config)
    examples = task.encode([row(None, "so </s> what"), row(None, "so")], ends, 64).examples
    batch = task.collate(examples, ends.pad_token_id)
    assert model(**{k: v for k, v in batch.items() if k != "labels"}).logits.shape == (2, 2)


def test_a_text_that_is_too_long_is_an_error_or_truncated_and_counted(minilm: ModelFiles) -> None:
    long = [row("a", "one two three four five six seven"), row("b", "one")]
    strict, lenient = Task().bind(long), Task(truncate=True).bind(long)
    tokenizer = load_tokenizer(minilm, strict)
    with pytest.raises(UserError, match=r"mine.jsonl:7: 9 tokens, but at most 8 fit; set task.truncate: true"):
        strict.encode(long, tokenizer, 8)
    encoded = lenient.encode(long, tokenizer, 8)
    assert encoded.counts == {"truncated_texts": 1, "lost_tokens": 1, "lost_entities": 0}
    assert tokenizer.decode(encoded.examples[0].features["input_ids"]) == "[CLS] one two three four five six [SEP]"
    records = lenient.decode(outputs([[0.0, 1.0], [0.0, 1.0]]), encoded.examples)
    assert [record.get("tokens_lost") for record in records] == [1, None]
    assert (
        strict.encode(long, tokenizer, 9).counts["truncated_texts"] == 0
    )  # truncation is not left on in the tokenizer


def test_truncation_that_loses_an_entity_is_counted(minilm: ModelFiles) -> None:
    text = "one two three four five six seven Ulm"
    rows = [row("a", text, head=[0, 3], tail=[34, 37]), row("b", text, head=[0, 3], tail=[4, 7])]
    task = Task(truncate=True).bind(rows)
    assert task.encode(rows, load_tokenizer(minilm, task), 10).counts["lost_entities"] == 1


# Answers


def test_a_record_has_the_label_and_its_probability() -> None:
    task = Task().bind(rows("a", "b"))
    examples = [SimpleNamespace(row=row("b")), SimpleNamespace(row=Row("text:1", {"text": "new"}))]
    records = task.decode(outputs([[0.0, math.log(3)], [1.0, 0.0]]), examples)  # type: ignore[arg-type]
    assert records[0] == {"text": "a good film", "predicted": "b", "probability": 0.75, "expected": "b"}
    assert records[1]["expected"] is None
    assert task.answer(records[1]) == {"text": "new", "label": "a", "probability": 0.731059}
    scores = score(task.metrics, [records[0], {**records[0], "expected": "a"}])
    assert (scores["accuracy"], scores["calibration_error"]) == (0.5, 0.25)
    assert "mcc" not in scores  # all predictions are one class


def test_answers_with_several_labels_or_a_number() -> None:
    several = Task(problem="multi_label").bind(rows(["a", "b"]))
    record = several.decode(outputs([[0.0, 2.0]]), [SimpleNamespace(row=row(["a"]))])[0]  # type: ignore[list-item]
    assert (record["predicted"], record["expected"]) == (["b"], ["a"])
    assert several.answer(record)["probabilities"] == {"a": 0.5, "b": 0.880797}
    number = Task(problem="regression").bind(rows(1.5, 2))
    record = number.decode(outputs([[0.1234567]]), [SimpleNamespace(row=row("2"))])[0]  # type: ignore[list-item]
    assert (record["predicted"], record["expected"]) == (0.123457, 2.0)
    assert number.answer(record) == {"text": "a good film", "value": 0.123457}


@pytest.mark.parametrize(
    ("input_", "line", "fields"),
    [
        ("text", "a\tb", {"text": "a\tb"}),
        ("text", '{"text": "a", "label": 1}', {"text": "a"}),
        ("text", "{curly} prose", {"text": "{curly} prose"}),
        ("pair", "a b\tc", {"text": "a b", "text_pair": "c"}),
        ("pair", '{"text": "a", "text_pair": "b"}', {"text": "a", "text_pair": "b"}),
        ("entities", '{"text": "a", "head": [0, 1], "tail": [0, 1]}', {"text": "a", "head": [0, 1], "tail": [0, 1]}),
    ],
)  # fmt: skip
def test_a_line_of_text_becomes_a_row(input_: Any, line: str, fields: dict[str, Any]) -> None:
    assert Task(input=input_, labels=["a", "b"]).row_from_text(line, "text:1").fields == fields


def test_a_line_that_does_not_fit_the_input_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"text:1: a JSON object with text, text_pair or two texts separated by a tab"):
        Task(input="pair", labels=["a", "b"]).row_from_text("only one", "text:1")
    with pytest.raises(UserError, match=r"text:1: a JSON object with text, head, tail was expected"):
        Task(input="entities", labels=["a", "b"]).row_from_text("Ada lived in Ulm", "text:1")


@pytest.mark.parametrize(
    ("problem", "select_by", "selection"),
    [
        *[("single_label", None, "accuracy"), ("single_label", "mcc", "mcc"), ("multi_label", None, "micro_f1")],
        *[("regression", None, "r2"), ("regression", "pearson", "pearson")],
    ],
)
def test_the_selection_metric_is_among_the_scores(problem: str, select_by: str | None, selection: str) -> None:
    task = Task.model_validate({"problem": problem, "select_by": select_by})
    assert task.selection == selection
    values = {"single_label": "ab", "multi_label": (["a"], ["b"]), "regression": (1.0, 3.0)}[problem]
    records = [{"predicted": value, "expected": value, "probability": 1.0} for value in values]
    assert task.selection in score(task.metrics, records)


def test_a_selection_metric_of_another_problem_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"'pearsn' is none of r2, pearson, spearman \(did you mean 'pearson'"):
        Task.model_validate({"problem": "regression", "select_by": "pearsn"})


def test_the_constant_baseline_is_the_score_of_the_most_frequent_answer() -> None:
    task = Task().bind(rows("a", "b"))
    baseline = task.constant_baseline(rows("b", "b", "b", "a"), rows("b", "a"))
    assert (baseline["accuracy"], baseline["macro_f1"]) == (0.5, pytest.approx(1 / 3))
    assert baseline["calibration_error"] == pytest.approx(0.25)  # probability 0.75, accuracy 0.5
    number = Task(problem="regression").bind(rows(1, 2))
    assert number.constant_baseline(rows(1, 3), rows(1, 3))["r2"] == pytest.approx(0.0)
    several = Task(problem="multi_label").bind(rows(["a", "b"]))
    assert several.constant_baseline(rows(["a"], ["a", "b"], []), rows(["a"], ["b"]))["exact_match"] == 0.5


# Bases


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_decoder_classifies_by_the_last_token_for_every_padding_token(architecture: str, tmp_path: Path) -> None:
    """transformers finds the last token by the config's padding token, which must be that of the batch."""
    sizes: dict[str, Any] = {"llama": {"num_key_value_heads": 2}, "gpt2": {"n_embd": 64, "n_head": 4}}[architecture]
    tiny(architecture, "AutoModelForCausalLM", vocab_size=512, **sizes).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).pad_token_id == 0
    task = Task().bind(rows("a", "b"))
    settings: Any = {"device": torch.device("cpu"), "compute": torch.float32, "padding_token": 9}
    files = ModelFiles(folder=tmp_path, source="a test", fingerprint="")
    base = load_base(Model(id=str(tmp_path)), files, task, QUANTIZATIONS["none"](), **settings)
    examples = task.encode([row(None, "long, longer"), row(None, "hi")], byte_tokenizer(base.model.config), 64).examples
    model = base.model.eval()
    together = model(**{k: v for k, v in task.collate(examples, 9).items() if k != "labels"}).logits
    for i, example in enumerate(examples):
        alone = model(input_ids=torch.tensor([example.features["input_ids"]])).logits
        assert torch.allclose(together[i], alone[0], atol=1e-5)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_pooler_that_the_base_lacks_is_part_of_the_head(quantization: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=97
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "base")  # without a pooler, as all masked language models
    task, files = Task().bind(rows("a", "b")), ModelFiles(folder=tmp_path / "base", source="a test", fingerprint="")

    def load(seed: int) -> peftlab.loading.model.Base:
        settings: Any = {"device": torch.device("cpu"), "compute": torch.float32, "seed": seed}
        return load_base(Model(id=str(tmp_path / "base")), files, task, QUANTIZATIONS[quantization](), **settings)

    base = load(0)
    assert base.head == ("bert.pooler", "classifier")
    assert type(base.model.get_submodule("bert.pooler.dense")) is torch.nn.Linear
    method = METHODS["lora"].model_validate({"rank": 4})
    model = method.apply(base.model, TrainingPlan(optimizer_steps=1, task_type="SEQ_CLS", head=base.head))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sum("pooler.modules_to_save" in name for name in trainable) == 2
    assert not [name for name in trainable if "pooler" in name and "lora" in name]
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    model(**inputs).logits.square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    method.save(model, tmp_path / "adapter")
    again = method.load(load(1).model, tmp_path / "adapter")  # another seed, which must have no effect
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


def test_a_head_for_other_labels_is_replaced_and_its_base_kept(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    five = BertForSequenceClassification(BertConfig(**shape, vocab_size=97, num_labels=5))
    five.save_pretrained(tmp_path)
    settings: Any = {"device": torch.device("cpu"), "compute": torch.float32, "seed": 3}
    task, files = Task().bind(rows("a", "b", "c")), ModelFiles(folder=tmp_path, source="a test", fingerprint="")
    first, again = (load_base(Model(id="a"), files, task, QUANTIZATIONS["none"](), **settings).model for _ in range(2))
    head = first.get_parameter("classifier.weight")
    assert head.shape == (3, 64)
    assert 0 < head.std() < 0.05  # drawn as transformers draws it, and the same for the same seed
    assert torch.equal(head, again.get_parameter("classifier.weight"))
    assert torch.equal(first.get_parameter("bert.pooler.dense.weight"), five.get_parameter("bert.pooler.dense.weight"))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_the_new_head_is_the_same_with_and_without_quantization(architecture: str, tmp_path: Path) -> None:
    tiny(architecture, "AutoModelForSequenceClassification", num_labels=5).save_pretrained(tmp_path)
    settings: Any = {"device": torch.device("cpu"), "compute": torch.float32, "seed": 3}
    task, files = Task().bind(rows("a", "b", "c")), ModelFiles(folder=tmp_path, source="a test", fingerprint="")
    heads = []
    for quantization in ("none", "int8", "nf4"):
        base = load_base(Model(id="a"), files, task, QUANTIZATIONS[quantization](), **settings)
        heads.append(
            {
                name: value
                for name, value in base.model.state_dict().items()
                if any(name.startswith(f"{module}.") for module in base.head)
            }
        )
        assert all(value.dtype == torch.float32 for value in heads[-1].values())
    assert max(value.shape[0] for value in heads[0].values() if value.shape[0] != 64) == 3
    for other in heads[1:]:
        assert all(torch.equal(value, other[name]) for name, value in heads[0].items())


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_base_of_another_shape_is_refused(quantization: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
    BertForSequenceClassification(BertConfig(**shape, intermediate_size=128)).save_pretrained(tmp_path)
    BertConfig(**shape, intermediate_size=256).save_pretrained(tmp_path)
    settings: Any = {"device": torch.device("cpu"), "compute": torch.float32}
    with pytest.raises(UserError, match=r"e.g. 'bert.encoder.layer.0.intermediate.*, or has them in other shapes"):
        load_base(
            Model(id="a"),
            ModelFiles(folder=tmp_path, source="a", fingerprint=""),
            Task().bind(rows("a", "b")),
            QUANTIZATIONS[quantization](),
            **settings,
        )


def test_a_base_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=97
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings: Any = {"device": torch.device("cpu"), "compute": torch.float32}
    files = ModelFiles(folder=tmp_path, source="a test", fingerprint="")
    with pytest.raises(UserError, match=r"a test lacks 1 of the base's tensors, e.g. 'bert.encoder.layer.1.output"):
        load_base(Model(id=str(tmp_path)), files, Task().bind(rows("a", "b")), QUANTIZATIONS["none"](), **settings)


# A whole run


MINE = """\
model: sentence-transformers/all-MiniLM-L6-v2
task: {TASK}
data: {{train: {FILE}, validation_share: 0.25, test_share: 0.25}}
method: {{kind: lora, rank: 4, targets: attention}}
training: {{steps: 4, evaluate_every: 2, batch_examples: 8, learning_rate: 5e-3, precision: float32}}
"""


def pairs_of(problem: str) -> list[dict[str, Any]]:
    """24 pairs with targets."""
    rows = []
    for i in range(24):
        good = i % 3 != 0
        label: Any = {"single_label": "pos" if good else "neg", "regression": i / 8 - 1.5}.get(problem, ["a"] * good)
        rows.append({"text": f"film {i}", "text_pair": "great" if good else "dull", "label": label})
    return rows


@pytest.mark.parametrize("problem", slow_after(1, ["single_label", "multi_label", "regression"]))
def test_a_recipe_with_custom_data_runs_and_answers_new_pairs(problem: str, tmp_path: Path) -> None:
    from peftlab.runs.inference import answers, of_lines

    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in pairs_of(problem)))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(MINE.format(TASK=f"{{kind: sequence_classification, problem: {problem}}}", FILE=file))
    loaded: Recipe = load_recipe(recipe)
    result = run(loaded, tmp_path / "run")
    assert result.selection in result.metrics["validation"]
    assert result.selection in result.constant_baseline["test"]
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    for split, scores in result.metrics.items():
        assert score(loaded.task.metrics, [record for record in records if record["split"] == split]) == scores
    answer = next(answers(tmp_path / "run", lambda task: of_lines(task, ["a film\tgreat"], "text")))
    target = {"single_label": "label", "multi_label": "labels", "regression": "value"}[problem]
    assert {"line", "text", "text_pair", target} <= answer.keys()


@pytest.mark.parametrize(
    ("problem", "select_by"),
    slow_after(1, [("single_label", "mcc"), ("regression", "pearson"), ("regression", "spearman")]),
)
def test_an_undefined_correlation_counts_as_0_in_the_selection_of_the_best_checkpoint(
    problem: str, select_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The correlation is undefined for a model whose predictions are all equal; the run continues."""
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in pairs_of(problem)))
    task = f"{{kind: sequence_classification, problem: {problem}, select_by: {select_by}}}"
    (tmp_path / "mine.yaml").write_text(MINE.format(TASK=task, FILE=file))
    recipe: Recipe = load_recipe(tmp_path / "mine.yaml")
    seen: list[int] = []

    def constant_at_first(task: Task, records: list[dict[str, Any]]) -> dict[str, float]:
        seen.append(len(records))
        kept = [{**record, "predicted": records[0]["expected"]} if len(seen) == 1 else record for record in records]
        answers = kept if len(seen) == 1 else [{**record, "predicted": record["expected"]} for record in kept]
        return score(task.metrics, task.to_metric_inputs(answers))

    monkeypatch.setattr(scoring, "score", constant_at_first)
    result = run(recipe, tmp_path / "run")
    assert result.curve.scores == pytest.approx([0.0, 1.0])
    assert result.best_step == 4
    assert result.metrics["validation"][select_by] == pytest.approx(1.0)


def test_a_correlation_with_equal_targets_is_refused_before_training(tmp_path: Path) -> None:
    train, one = tmp_path / "mine.jsonl", tmp_path / "one.jsonl"
    train.write_text("".join(json.dumps(line) + "\n" for line in pairs_of("single_label")))
    one.write_text("".join(json.dumps(line | {"label": "pos"}) + "\n" for line in pairs_of("single_label")[:6]))
    task = "{kind: sequence_classification, select_by: mcc}"
    (tmp_path / "mine.yaml").write_text(MINE.format(TASK=task, FILE=train))
    recipe: Recipe = load_recipe(tmp_path / "mine.yaml", [f"data.validation={one}", f"data.test={one}"])
    with pytest.raises(UserError, match="data: mcc is undefined on the validation split's 6 examples"):
        run(recipe, tmp_path / "run")


@pytest.mark.parametrize("architecture", slow_after(1, ["t5", "bart"]))
def test_a_classifier_that_reads_the_end_token_is_merged(architecture: str, tmp_path: Path) -> None:
    """T5 and BART classify by the end token: the check of a merge must use texts, not random tokens."""
    from peftlab.runs.inference import merge

    sizes: dict[str, Any] = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2}
    config: dict[str, Any] = sizes | {"d_model": 64, "eos_token_id": 2}
    if architecture == "t5":
        config = {"d_ff": 64, "d_kv": 16, "num_layers": 2, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = tiny(architecture, "AutoModel", vocab_size=512, max_position_embeddings=64, **config)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer(model.config).save_pretrained(tmp_path / "base")
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in pairs_of("single_label")))
    (tmp_path / "mine.yaml").write_text(
        MINE.format(TASK="sequence_classification", FILE=file)
        .replace("sentence-transformers/all-MiniLM-L6-v2", str(tmp_path / "base"))
        .replace("targets: attention", "targets: all-linear")
    )
    run(load_recipe(tmp_path / "mine.yaml"), tmp_path / "run")
    assert merge(tmp_path / "run", tmp_path / "merged") < 1e-4
