"""Sequence classification: labels, losses by hand, inputs, answers and scores."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.loading.model import load_tokenizer
from peftlab.metrics import score
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.tasks.sequence_classification import SequenceClassification as Task
from peftlab.tasks.task import IGNORED
from tests.contract.bases import tiny
from tests.tasks.texts import outputs, row, rows, targets

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
