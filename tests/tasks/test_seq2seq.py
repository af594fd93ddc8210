"""Sequence to sequence: encoding, loss, generation, runs, and the real flan-T5 from its ONNX graphs."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from peftlab.data.examples import Row
from peftlab.data.hub import Hub
from peftlab.errors import UserError
from peftlab.loading.model import Base, LoadOptions, load_base, load_tokenizer, longest_input
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.configs import stored_configs
from peftlab.models.model import Model, ModelFiles
from peftlab.models.tiny_model import small_config
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import load_recipe
from peftlab.results.result_file import read_result
from peftlab.runs import artifact
from peftlab.runs.inference import answers, merge, rows_from_lines
from peftlab.runs.run import RunOptions, run
from peftlab.runs.scoring import score
from peftlab.sources import assets
from peftlab.tasks.seq2seq import Seq2Seq
from peftlab.tasks.task import IGNORED
from peftlab.training.prediction import predict

CPU = torch.device("cpu")
TITLES = Model(id="traceforge/flan-t5-small-titles")
PAIRS = [("The cat sat on the mat.", "cat on mat"), ("It rained all day in the town.", "rain"), ("Sun.", "sun")]


def row(source: object = PAIRS[0][0], target: object = PAIRS[0][1]) -> Row:
    return Row("mine.jsonl:7", {"source": source, "target": target})


ROWS = [row(*pair) for pair in PAIRS]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A T5 of two layers with random weights, as a folder that a recipe can name."""
    folder = tmp_path_factory.mktemp("t5")
    config = small_config(stored_configs()["google/flan-t5-small"], 64)
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    byte_tokenizer(config).save_pretrained(folder)
    return ModelFiles(folder=folder, source="a small t5", fingerprint="")


@pytest.fixture(scope="module")
def tokenizer(small: ModelFiles) -> PreTrainedTokenizerBase:
    return load_tokenizer(small, Seq2Seq())


def base_of(files: ModelFiles, quantization: str = "none", model: Model = TITLES) -> Base:
    return load_base(
        model, files, Seq2Seq(), QUANTIZATIONS[quantization](), LoadOptions(device=CPU, compute=torch.float32)
    )


def test_padding_is_ignored_and_the_decoder_reads_the_labels_shifted(
    small: ModelFiles, tokenizer: PreTrainedTokenizerBase
) -> None:
    task, model = Seq2Seq(), base_of(small).model
    examples = task.encode(ROWS, tokenizer, 128).examples
    batch = task.collate(examples, tokenizer.pad_token_id)
    assert int(task.count_targets(batch)) == sum(len(e.features["labels"]) for e in examples)
    assert batch["labels"][2, -1] == IGNORED
    inputs = task.model_inputs(batch, model)
    assert "labels" not in inputs
    assert inputs["decoder_input_ids"][:, 0].tolist() == [model.config.decoder_start_token_id] * 3
    assert inputs["decoder_input_ids"][0, 1:].tolist() == batch["labels"][0, :-1].tolist()
    assert IGNORED not in inputs["decoder_input_ids"]


def test_the_loss_is_that_of_transformers_summed_over_targets(
    small: ModelFiles, tokenizer: PreTrainedTokenizerBase
) -> None:
    task, model = Seq2Seq(), base_of(small).model.eval()
    batch = task.collate(task.encode(ROWS, tokenizer, 128).examples, tokenizer.pad_token_id)
    with torch.no_grad():
        expected = model(**batch).loss  # transformers' mean
        ours = task.loss(model(**task.model_inputs(batch, model)), batch) / task.count_targets(batch)
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


def test_xsum_has_999_articles_with_summaries() -> None:
    data = Hub(id="EdinburghNLP/xsum/test-1000", columns={"source": "document", "target": "summary"})
    rows = [row for part in data.load(Seq2Seq.fields).rows.values() for row in part]
    Seq2Seq().bind(rows)  # refuses an empty text
    assert len(rows) == 999


def test_the_prefix_is_added_to_sources_only(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = Seq2Seq(prefix="headline: ").encode([row()], tokenizer, 128).examples
    assert (
        tokenizer.decode(example.features["input_ids"], skip_special_tokens=True).strip() == f"headline: {PAIRS[0][0]}"
    )
    assert tokenizer.decode(example.features["labels"], skip_special_tokens=True).strip() == PAIRS[0][1]


@pytest.mark.parametrize(
    ("limit", "settings", "says"),
    [
        (8, {}, r"mine.jsonl:7: source: 25 tokens, but at most 8 fit \(task.max_length\); set task.truncate: true"),
        (64, {"max_target": 4}, r"mine.jsonl:7: target: 12 tokens, but at most 4 fit \(task.max_target\)"),
    ],
)
def test_a_text_that_is_too_long_is_an_error_or_truncated_and_counted(
    tokenizer: PreTrainedTokenizerBase, limit: int, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Seq2Seq(**settings).encode([row()], tokenizer, limit)
    encoded = Seq2Seq(truncate=True, max_target=4).encode([row(), row("a", "b")], tokenizer, 8)
    assert encoded.counts == {"truncated_sources": 1, "truncated_targets": 1}
    assert len(encoded.examples[0]) == 8
    assert len(encoded.examples[0].features["labels"]) == 4
    assert encoded.examples[0].features["labels"][-1] == tokenizer.eos_token_id
    assert tokenizer.backend_tokenizer.truncation is None  # else truncation would be saved with it


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("", "x", "mine.jsonl:7: source: a string was expected, found ''"),
        ("x", "  ", "mine.jsonl:7: target: a string was expected, found '  '"),
        ("x", None, "mine.jsonl:7: target: a string was expected, found 'None'"),
        (["x"], "x", "mine.jsonl:7: source: a string was expected"),
    ],
)
def test_a_bad_row_names_file_line_and_field(source: object, target: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Seq2Seq().bind([row(), row(source, target)])
    assert says in str(caught.value)


def test_the_baseline_copies_the_source() -> None:
    rows = [row("GNU Emacs", "GNU Emacs"), row("the editor", "der Editor")]
    assert Seq2Seq().constant_baseline([], rows[:1])["chrf"] == pytest.approx(100)
    expected = score(Seq2Seq(), [{"predicted": r.fields["source"], "expected": r.fields["target"]} for r in rows])
    assert Seq2Seq().constant_baseline([row("a", "b")], rows) == expected


def predicted(task: Seq2Seq, base: Base, tokenizer: PreTrainedTokenizerBase, tokens: int = 4096) -> list[str]:
    records = predict(
        base.model,
        task=task,
        examples=task.encode(ROWS, tokenizer, 128).examples,
        tokenizer=tokenizer,
        batch_tokens=tokens,
        accelerator=Accelerator(),
        autocast=contextlib.nullcontext,
    )
    assert [record["expected"] for record in records] == [target for _, target in PAIRS]
    return [record["predicted"] for record in records]


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("num_beams", 4, {"beams": 4}),
        ("no_repeat_ngram_size", 1, {"no_repeat_ngram": 1}),
        ("length_penalty", -9.0, {"beams": 4, "length_penalty": -9.0}),
        ("repetition_penalty", 9.0, None),
    ],
)
def test_generation_follows_the_recipe_not_the_generation_config_of_the_base(
    small: ModelFiles, tokenizer: PreTrainedTokenizerBase, name: str, value: float, setting: dict[str, Any] | None
) -> None:
    base = base_of(small)
    base.model.lm_head.weight.data *= 0.05  # flatter distributions, so that beams find other texts
    beams = {"beams": 4} if name == "length_penalty" else {}
    expected = predicted(Seq2Seq(max_new_tokens=12, **beams), base, tokenizer)
    setattr(base.model.generation_config, name, value)
    assert predicted(Seq2Seq(max_new_tokens=12, **beams), base, tokenizer) == expected
    batch = Seq2Seq().collate(Seq2Seq().encode(ROWS, tokenizer, 128).examples, tokenizer.pad_token_id)
    settings = {"max_new_tokens": 12, "num_beams": 4 if beams else 1} | {name: value}
    sequences = base.model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **settings)
    texts = [text.strip() for text in tokenizer.batch_decode(sequences, skip_special_tokens=True)]
    assert texts != expected  # else this test could not fail
    if setting is not None:
        assert predicted(Seq2Seq(max_new_tokens=12, **setting), base, tokenizer) == texts


@pytest.fixture(scope="module")
def titles() -> ModelFiles:
    """flan-t5-small, dequantized; fetched and converted once."""
    return TITLES.files()


@pytest.mark.slow
def test_every_tensor_of_the_onnx_graphs_is_loaded(titles: ModelFiles) -> None:
    from safetensors import safe_open

    with safe_open(titles.folder / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert len(names) == 190
    base = base_of(titles)  # refuses a base that lacks a tensor
    tensors_of_base = set(base.model.state_dict()) - {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert tensors_of_base == names
    assert not torch.equal(base.model.lm_head.weight, base.model.shared.weight)
    assert base.parameters == sum(p.numel() for p in base.model.parameters()) == 76_961_152


@pytest.mark.slow
def test_its_source_states_the_dequantization(titles: ModelFiles) -> None:
    assert "traceforge-title-model 0.2.0, dequantized from int8" in titles.source
    assert assets.verify(assets.find(TITLES.id)) == []  # type: ignore[arg-type]
    assert not list(titles.folder.glob("*.onnx"))


@pytest.mark.slow
def test_without_tuning_it_translates_and_summarizes(titles: ModelFiles) -> None:
    tokenizer = load_tokenizer(titles, Seq2Seq())
    task = Seq2Seq(max_new_tokens=20)
    assert tokenizer("Rain.")["input_ids"][-1] == tokenizer.eos_token_id
    texts = ["translate English to German: The house is small.", "Fix the login bug in the authentication module"]
    records = predict(
        base_of(titles).model,
        task=task,
        examples=task.encode([task.row_from_text(text, "here") for text in texts], tokenizer, 64).examples,
        tokenizer=tokenizer,
        batch_tokens=512,
        accelerator=Accelerator(),
        autocast=contextlib.nullcontext,
    )
    assert records[0]["predicted"].startswith("Das Haus ist klein")
    assert "login" in records[1]["predicted"].lower() or "authentication" in records[1]["predicted"].lower()


@pytest.mark.slow
def test_relative_positions_have_no_limit_but_the_tokenizer_does(titles: ModelFiles) -> None:
    assert longest_input(titles, Seq2Seq()) == 512
    assert longest_input(titles, Seq2Seq(max_length=900)) == 900


RECIPE = """\
model: {model}
task: {{kind: seq2seq, max_new_tokens: 8, beams: 2}}
data: {{train: {data}, validation: {data}, test: {data}}}
method: {{kind: lora, rank: 4}}
training: {{steps: 60, evaluate_every: 60, batch_examples: 3, learning_rate: 3e-3, precision: float32}}
"""


@pytest.fixture(scope="module")
def finished(small: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in PAIRS)
    )
    (folder / "mine.yaml").write_text(RECIPE.format(model=small.folder, data=folder / "mine.jsonl"))
    run(load_recipe(folder / "mine.yaml"), folder / "out", RunOptions(score_base=True))
    return folder / "out"


def test_a_run_learns_generates_and_records_metric_signatures(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["metrics"]["test"]["rougeL"] > 0.5
    assert set(result["metrics"]["test"]) == {"rouge1", "rouge2", "rougeL", "bleu", "chrf"}
    assert set(result["constant_baseline"]["test"]) == set(result["metrics"]["test"])
    assert result["metric_signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert "rouge-score:" in result["metric_signatures"]["rouge"]
    records = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert [(r["source"], r["expected"]) for r in records if r["split"] == "test"] == PAIRS
    assert [r["where"] for r in records if r["split"] == "test"] == [f"mine.jsonl:{n + 1}" for n in range(len(PAIRS))]


def test_tokens_are_counted_in_sources_and_targets(finished: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    result = read_result(finished)
    examples = Seq2Seq().encode(ROWS, tokenizer, 64).examples
    columns = [[len(example.features[name]) for example in examples] for name in ("input_ids", "labels")]
    tokens, positions = (sum(measure(column) for column in columns) for measure in (sum, lambda c: len(c) * max(c)))
    assert result.splits["train"].tokens == tokens
    assert result.cost.tokens == 60 * tokens  # each step sees all of them
    assert result.cost.padding_fraction == round(1 - tokens / positions, 4)


def test_the_base_model_score_is_that_of_its_own_predictions(
    finished: Path, small: ModelFiles, tokenizer: PreTrainedTokenizerBase
) -> None:
    result = read_result(finished)
    task = Seq2Seq(max_new_tokens=8, beams=2)
    records = predict(
        base_of(small).model,
        task=task,
        examples=task.encode(ROWS, tokenizer, 64).examples,
        tokenizer=tokenizer,
        batch_tokens=512,
        accelerator=Accelerator(),
        autocast=contextlib.nullcontext,
    )
    assert result.base_model == dict.fromkeys(("validation", "test"), score(task, records))
    assert result.base_model["test"] != result.metrics["test"]


def test_a_tuned_model_answers_texts(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    outputs = list(answers(finished, lambda task: rows_from_lines(task, [source for source, _ in PAIRS], "text")))
    assert [answer["text"] for answer in outputs] == [r["predicted"] for r in records if r["split"] == "test"]


def test_a_tuned_model_is_merged_into_its_base(
    finished: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert merge(finished, tmp_path / "merged") < 1e-3  # of logits up to 60
    merged = T5ForConditionalGeneration.from_pretrained(tmp_path / "merged")
    tuned = artifact.load(finished, device=CPU)
    task = Seq2Seq()
    batch = task.collate(task.encode(ROWS, tokenizer, 64).examples, tokenizer.pad_token_id)
    with torch.no_grad():
        expected = tuned.model(**task.model_inputs(batch, merged)).logits
        torch.testing.assert_close(merged(**task.model_inputs(batch, merged)).logits, expected, atol=1e-3, rtol=0)
