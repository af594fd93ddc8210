"""Token classification: labels, encoding, tagging schemes, bad rows, answers and scores."""

import math

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import TokenClassifierOutput

from peftlab import metrics
from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.loading.model import load_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.statistics.aggregates import AGGREGATES
from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.intervals import mean_score
from peftlab.suites.collect import score_statistics
from peftlab.tasks.task import IGNORED
from peftlab.tasks.token_classification import TokenClassification

WORDS = ["Wolfgang", "Amadeus", "visited", "Sankt", "Gilgen", "."]
TAGS = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]


def row(words: object = WORDS, tags: object = TAGS) -> Row:
    return Row("mine.jsonl:7", {"tokens": words, "labels": tags})


def task(**settings: object) -> TokenClassification:
    return TokenClassification.model_validate(settings).bind([row()])


def test_labels_are_those_of_the_data_in_a_fixed_order() -> None:
    assert task().labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert task(labels=["I-PER", "B-PER", "O", "B-LOC", "I-LOC"]).labels[0] == "I-PER"  # type: ignore[index]


def test_the_first_token_of_a_word_carries_its_tag(minilm: ModelFiles) -> None:
    bound = task()
    tokenizer = load_tokenizer(minilm, bound)
    example = bound.encode([row()], tokenizer, 128).examples[0]
    pieces = tokenizer.convert_ids_to_tokens(example.features["input_ids"])
    tagged = {piece: label for piece, label in zip(pieces, example.features["labels"], strict=True) if label != IGNORED}
    starts = [piece for piece in pieces if not piece.startswith("##") and piece not in ("[CLS]", "[SEP]")]
    assert list(tagged) == starts
    assert any(piece.startswith("##") for piece in pieces)
    assert [bound.labels[label] for label in tagged.values()] == TAGS  # type: ignore[index]


def test_a_byte_level_tokenizer_without_add_prefix_space_does_not_join_words() -> None:
    inner = Tokenizer(BPE(unk_token="?"))
    words = Split(Regex(r"\s?\w+"), "isolated")
    inner.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = ByteLevel.alphabet()
    inner.train_from_iterator(["a main road"] * 9, BpeTrainer(special_tokens=["?"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?")
    example = task().encode([row(["a", "main", "road"], ["O"] * 3)], tokenizer, 64).examples[0]
    assert tokenizer.convert_ids_to_tokens(example.features["input_ids"])[-2:] == ["Ġmain", "Ġroad"]


def test_padding_is_no_target(minilm: ModelFiles) -> None:
    bound = task()
    examples = bound.encode([row(), row(["Hi"], ["O"])], load_tokenizer(minilm, bound), 128).examples
    batch = bound.collate(examples, 0)
    assert int(bound.count_targets(batch)) == 7
    assert batch["attention_mask"].sum().item() == sum(len(e) for e in examples)
    logits = torch.randn(*batch["labels"].shape, 5, generator=torch.Generator().manual_seed(0))
    loss = bound.loss(TokenClassifierOutput(logits=logits), batch)
    logits[batch["labels"] == IGNORED] = 100.0
    assert bound.loss(TokenClassifierOutput(logits=logits), batch) == loss


def test_decoding_returns_the_tags_with_the_highest_logits(minilm: ModelFiles) -> None:
    bound = task()
    words = ["Wolfgang", "\u200d", "Amadeus"]  # a word of a control character only has no token
    examples = bound.encode([row(words, ["B-PER", "O", "I-PER"])], load_tokenizer(minilm, bound), 128).examples
    labels = torch.tensor([example.features["labels"] for example in examples]).clamp(min=0)
    logits = torch.nn.functional.one_hot(labels, 5).float()
    record = bound.decode(TokenClassifierOutput(logits=logits), examples)[0]
    tags = ["B-PER", "O", "I-PER"]
    assert record == {"tokens": words, "predicted": tags, "expected": tags, "words_unseen": 1}


def test_a_sentence_that_is_too_long_is_an_error_or_truncated_and_counted(
    minilm: ModelFiles,
) -> None:
    strict, lenient = task(), task(truncate=True)
    tokenizer = load_tokenizer(minilm, strict)
    with pytest.raises(UserError, match=r"mine.jsonl:7: 10 tokens, but at most 8 fit; set task.truncate: true"):
        strict.encode([row()], tokenizer, 8)
    encoded = lenient.encode([row()], tokenizer, 5)
    assert len(encoded.examples[0]) == 5
    assert encoded.examples[0].features["input_ids"][-1] == tokenizer.sep_token_id
    assert encoded.counts == {"truncated_sentences": 1, "lost_words": 3, "lost_entities": 1}
    logits = torch.zeros(1, 5, 5)
    assert len(lenient.decode(TokenClassifierOutput(logits=logits), encoded.examples)[0]["predicted"]) == len(WORDS)


@pytest.mark.parametrize(
    ("words", "tags", "says"),
    [
        (WORDS, TAGS[:-1], "mine.jsonl:7: labels: 5 tags for 6 tokens"),
        (
            WORDS,
            ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "O"],
            "'I-LOC' at 'Sankt' follows 'O', and no B-LOC opens it",
        ),
        (WORDS, ["B-PER", "I-LOC", "O", "O", "O", "O"], "'I-LOC' at 'Amadeus' follows 'B-PER'"),
        (["a", "b"], ["NN", "O"], "mine.jsonl:7: labels: 'NN' at 'a' is not an IOB2 tag: O, B-x or I-x"),
        (["a"], ["E-PER"], "'E-PER' at 'a' is not an IOB2 tag"),
        ([], [], "mine.jsonl:7: tokens: an empty sentence"),
        (["a", " "], ["O", "O"], "mine.jsonl:7: tokens: an empty word"),
        ("a b", ["O", "O"], "mine.jsonl:7: tokens: a list of strings was expected, found 'a b'"),
        (["a", "b"], [0, 1], "mine.jsonl:7: labels: a list of strings was expected"),
        (["a", None], ["O", "O"], "mine.jsonl:7: tokens: a list of strings was expected"),
    ],
)
def test_a_bad_row_names_file_line_and_field(words: object, tags: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        TokenClassification().bind([row(), row(words, tags)])
    assert says in str(caught.value)


def test_an_unknown_tag_suggests_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"mine.jsonl:7: labels: unknown tag 'I-LOC' \(did you mean 'B-LOC'\?\)"):
        TokenClassification(labels=["O", "B-PER", "I-PER", "B-LOC"]).bind([row()])


def test_an_answer_lists_entities_by_words() -> None:
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O"]
    answer = task().answer({"tokens": WORDS, "predicted": tags})
    assert [(e["type"], e["start"], e["end"], e["text"]) for e in answer["entities"]] == [
        ("PER", 0, 2, "Wolfgang Amadeus"),
        ("LOC", 3, 4, "Sankt"),
        ("LOC", 4, 5, "Gilgen"),
    ]


@pytest.mark.parametrize(
    "tags", [["I-PER", "I-PER", "O", "B-LOC", "I-LOC", "I-ORG"], ["B-PER", "I-LOC", "I-LOC", "O", "I-PER", "B-LOC"]]
)
def test_an_answer_lists_the_entities_that_the_metric_counts(tags: list[str]) -> None:
    answer = task().answer({"tokens": WORDS, "predicted": tags})
    (statistics,) = metrics.sufficient_statistics(["entity_f1"], [[{"predicted": tags, "expected": TAGS}]])
    ((_, predicted, _),) = statistics.rows
    assert len(answer["entities"]) == predicted == sum(tag.startswith("B-") for tag in tags)


def test_an_entity_type_may_have_a_hyphen() -> None:
    answer = task().answer({"tokens": ["New", "York"], "predicted": ["B-LOC-CITY", "I-LOC-CITY"]})
    assert answer["entities"] == [{"type": "LOC-CITY", "start": 0, "end": 2, "text": "New York"}]


def test_text_is_split_into_words_and_punctuation() -> None:
    text = "Mr. O'Neill paid U.S. banks 3.50, didn't he?"
    words = ["Mr", ".", "O'Neill", "paid", "U.S", ".", "banks", "3.50", ",", "didn't", "he", "?"]
    assert task().row_from_text(text, "text:1").fields["tokens"] == words


def test_plain_tags_are_scored_word_by_word(minilm: ModelFiles) -> None:
    tags = ["NNP", "NNP", "VBD", "NNP", "NNP", "."]
    bound = TokenClassification(scheme="plain", truncate=True).bind([row(tags=tags)])
    assert (bound.labels, bound.selection) == ([".", "NNP", "VBD"], "accuracy")
    encoded = bound.encode([row(tags=tags)], load_tokenizer(minilm, bound), 5)  # three words fit
    assert encoded.counts == {"truncated_sentences": 1, "lost_words": 3}
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 2, 0]]), 3).float()
    record = bound.decode(TokenClassifierOutput(logits=logits), encoded.examples)[0]
    assert record["predicted"] == [
        "NNP",
        "NNP",
        "VBD",
        "",
        "",
        "",
    ]  # a word that was cut off has no tag, which is wrong
    scores = metrics.score(bound.metrics, bound.to_metric_inputs([record]))
    assert scores["accuracy"] == 0.5
    assert (scores["f1/VBD"], scores["f1/."]) == (1.0, 0.0)
    assert "f1/" not in scores
    assert bound.answer(record) == {"words": WORDS, "tags": ["NNP", "NNP", "VBD", None, None, None], "words_unseen": 3}


def test_statistics_of_plain_tags_are_per_sentence_and_give_the_accuracy() -> None:
    """Words of a sentence are not independent: resampled one by one they would give intervals that are too narrow."""
    plain = TokenClassification(scheme="plain")
    records = [
        {"predicted": ["X", "Y", "Y"], "expected": ["X", "X", "Y"]},
        {"predicted": ["X"], "expected": ["X"]},
    ]
    counts, *rest = score_statistics(plain, records, plain.metrics)
    assert [other.score for other in rest] == ["macro_f1", "micro_f1"]
    assert (counts.score, counts.aggregate, counts.rows) == ("accuracy", "ratio", [[2, 3], [1, 1]])
    aggregate = AGGREGATES[counts.aggregate]
    assert aggregate is not None
    resampled = bootstrap([counts.rows], aggregate)
    assert resampled.counts.shape[1] == 2
    assert (
        mean_score(resampled).value == metrics.score(plain.metrics, plain.to_metric_inputs(records))["accuracy"] == 0.75
    )


def test_tags_that_are_not_iob2_need_another_scheme() -> None:
    with pytest.raises(UserError, match=r"'NN' at 'Wolfgang' is not an IOB2 tag: .* need task.scheme: plain"):
        task().bind([row(tags=["NN"] * 6)])
    with pytest.raises(ValueError, match=r"'NN' is not an IOB2 tag: .* need scheme: plain"):
        TokenClassification(labels=["NN"])
    with pytest.raises(UserError, match=r"mine.jsonl:7: labels: an empty tag at 'Amadeus'"):
        TokenClassification(scheme="plain").bind([row(tags=["NN", "", *["NN"] * 4])])


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob1", ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "O"]),
        ("iobes", ["B-PER", "E-PER", "O", "S-LOC", "S-LOC", "O"]),
        ("bilou", ["B-PER", "L-PER", "O", "U-LOC", "U-LOC", "O"]),
    ],
)
def test_tags_of_another_scheme_are_learned_and_predicted_as_iob2(
    scheme: str, tags: list[str], minilm: ModelFiles
) -> None:
    expected = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O"]
    bound = TokenClassification.model_validate({"scheme": scheme}).bind([row(tags=tags)])
    assert (bound.labels, bound.selection) == (["O", "B-LOC", "B-PER", "I-PER"], "entity_f1")
    example = bound.encode([row(tags=tags)], load_tokenizer(minilm, bound), 64).examples[0]
    assert bound.labels is not None
    assert [bound.labels[number] for number in example.features["labels"] if number != IGNORED] == expected
    logits = torch.zeros(1, len(example), 4)
    assert bound.decode(TokenClassifierOutput(logits=logits), [example])[0]["expected"] == expected
    assert bound.reference(row(tags=tags)) == {"expected": expected}
    assert list(bound._target_labels(row(tags=tags))) == [[tag] for tag in expected]
    assert bound.constant_baseline([row(tags=tags)], [row(tags=tags)])["token_accuracy"] == pytest.approx(2 / 6)
    bound.bind(bound.sample_rows())
    bound.from_training([row(tags=tags)])


@pytest.mark.parametrize(
    ("scheme", "tags", "says"),
    [
        (
            "iob1",
            ["B-PER", "O"],
            "'B-PER' at 'a' follows 'O': these tags are not IOB1; for a mixture of IOB1 and IOB2 set task.scheme: iob2 "
            "and task.unopened: begin",
        ),
        ("iobes", ["B-PER", "O"], "'O' at 'b' follows 'B-PER': these tags are not IOBES"),
        ("iobes", ["B-PER", "E-LOC"], "'E-LOC' at 'b' follows 'B-PER': these tags are not IOBES"),
        ("bilou", ["O", "B-PER"], "'B-PER' at 'b' is never closed: these tags are not BILOU"),
        ("bilou", ["S-PER", "O"], "'S-PER' at 'a' is not a BILOU tag: O, B-x, I-x, L-x or U-x"),
        (
            "iob2",
            ["I-PER", "O"],
            "'I-PER' at 'a' follows 'O', and no B-PER opens it; task.unopened: begin reads such an I- as B-",
        ),
    ],
)
def test_tags_that_are_not_of_the_scheme_are_refused(scheme: str, tags: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        TokenClassification.model_validate({"scheme": scheme}).check_row(row(["a", "b"], tags))
    assert str(caught.value).startswith(f"mine.jsonl:7: labels: {says}")


def test_plain_tags_that_may_be_entities_cause_a_remark() -> None:
    plain = TokenClassification(scheme="plain")
    rows = [row(["a", "b"], ["O", "PER"])]
    assert "the label O suggests entities: scheme: plain scores" in str(plain.bind(rows).check_training_rows(rows))
    rows = [row(["a", "b"], ["NN", "VB"])]
    assert plain.bind(rows).check_training_rows(rows) is None


def test_class_weights_and_label_smoothing_apply_to_words() -> None:
    train = [row(["a", "b", "c"], ["X", "X", "Y"])]
    task = TokenClassification(scheme="plain", class_weights="balanced", label_smoothing=0.2).from_training(train)
    task = task.bind([*train, row(["d"], ["Y"])])
    assert task.class_weights == {"X": pytest.approx(3 / 4), "Y": pytest.approx(3 / 2)}
    logits = torch.tensor([[[0.0, math.log(3)], [9.0, 0.0]]])
    batch = {"labels": torch.tensor([[1, IGNORED]])}
    loss = task.loss(TokenClassifierOutput(logits=logits), batch)
    assert float(loss) == pytest.approx(-0.9 * 1.5 * math.log(3 / 4) - 0.1 * 0.75 * math.log(1 / 4))


def test_the_constant_baseline_is_the_most_frequent_tag_for_every_word() -> None:
    plain = TokenClassification(scheme="plain").bind([row(["a", "b"], ["X", "Y"])])
    baseline = plain.constant_baseline([row(["a", "b", "c"], ["Y", "Y", "X"])], [row(["a", "b"], ["X", "Y"])])
    assert baseline["accuracy"] == 0.5
    assert task().constant_baseline([row(["a", "b"], ["O", "O"])], [row()])["token_accuracy"] == pytest.approx(2 / 6)
