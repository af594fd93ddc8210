"""From a recipe to a tuned model and back: what a run leaves, and that it can be used again."""

import hashlib
import json
import shutil
from pathlib import Path

import filelock
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForTokenClassification

from peftlab.errors import UserError
from peftlab.metrics import load_metric
from peftlab.models.model import ModelFiles
from peftlab.recipe import load_recipe
from peftlab.results.result_file import read_result
from peftlab.results.run_result import RunResult
from peftlab.runs import artifact
from peftlab.runs.inference import answers, merge, rows_from_lines
from peftlab.runs.run import run
from tests.conftest import RECIPE
from tests.sampling import slow_after

CPU = torch.device("cpu")


def finished(folder: Path, *overrides: str) -> tuple[RunResult, Path]:
    path = folder / "mine.yaml"
    path.write_text(RECIPE)
    return run(load_recipe(path, overrides), folder / "out"), folder / "out"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    return finished(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    return finished(tmp_path_factory.mktemp("qlora"), "quantization=nf4")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_result_predictions_and_adapter_and_nothing_else(lora: tuple[RunResult, Path]) -> None:
    result, folder = lora
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "predictions.jsonl", "result.json"]
    assert sorted(path.name for path in folder.parent.glob("[!.]*")) == ["mine.yaml", "out"]
    files = {path.name for path in (folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "peftlab.json", "tokenizer.json"} <= files
    assert read_result(folder) == result


def test_the_validation_loss_is_that_of_the_validation_split(lora: tuple[RunResult, Path]) -> None:
    result, folder = lora
    best = result.curve.steps.index(result.best_step)
    tuned = artifact.load(folder, device=CPU)
    rows = load_recipe(folder.parent / "mine.yaml").rows().rows["validation"]
    nats, targets = 0.0, 0
    for example in tuned.card.task.encode(rows, tuned.tokenizer, tuned.card.limit).examples:
        labels = torch.tensor(example.features["labels"])
        with torch.no_grad():
            logits = tuned.model(input_ids=torch.tensor([example.features["input_ids"]])).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        targets += int((labels != -100).sum())
    assert result.curve.validation_losses[best] == pytest.approx(nats / targets, rel=1e-4)
    assert result.curve.losses[best] != pytest.approx(nats / targets, rel=1e-3)


def test_a_record_without_validation_losses_is_readable(lora: tuple[RunResult, Path]) -> None:
    values = lora[0].model_dump(mode="json")
    del values["curve"]["validation_losses"]
    assert RunResult.model_validate(values).curve.validation_losses == []


def test_the_result_records_what_was_run_and_what_it_cost(lora: tuple[RunResult, Path]) -> None:
    result, folder = lora
    rank, width, layers, tags = 4, 384, 6, len(artifact.read_card(folder).task.model_dump()["labels"])
    assert result.parameters.method == layers * 2 * rank * (width + width)
    assert result.parameters.head == (width + 1) * tags
    assert result.parameters.trainable == result.parameters.method + result.parameters.head
    assert result.reach is not None
    assert result.reach.adapted == pytest.approx(1 / 6)  # query and value: 2 of 4 + 2 x 4 squares of the width
    assert result.cost.optimizer_steps == 6
    assert result.curve.steps == [3, 6]
    assert result.cost.adapter_bytes == (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    assert {name: counts.examples for name, counts in result.splits.items()} == {
        "train": 48, "validation": 12, "test": 12
    }  # fmt: skip
    assert result.environment.libraries["torch"] == torch.__version__
    assert result.recipe["method"]["alpha"] == 32.0  # defaults are filled in
    assert 0 <= result.cost.padding_fraction < 0.5
    assert result.best_step in (3, 6)


def test_training_learns(tmp_path: Path) -> None:
    result, _ = finished(tmp_path, "training.steps=40", "training.evaluate_every=40", "method.targets=all-linear")
    assert result.curve.losses[-1] < 2.4  # from 3.8, the logarithm of the number of tags
    assert result.metrics["test"]["token_accuracy"] > 0.5


def test_the_stored_predictions_give_the_reported_metrics(lora: tuple[RunResult, Path]) -> None:
    result, folder = lora
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for split in ("validation", "test"):
        chosen = [record for record in records if record["split"] == split]
        assert [record["example"] for record in chosen] == list(range(12))
        scores = load_metric("entity_f1").compute(
            predictions=[r["predicted"] for r in chosen], references=[r["expected"] for r in chosen]
        )
        assert scores == result.metrics[split]


def test_the_same_recipe_gives_the_same_bytes(lora: tuple[RunResult, Path], tmp_path: Path) -> None:
    _, again = finished(tmp_path)
    assert digest(again) == digest(lora[1])


@pytest.mark.parametrize("which", ["lora", "qlora"])
def test_a_reloaded_model_predicts_what_the_run_predicted(which: str, request: pytest.FixtureRequest) -> None:
    _, folder = request.getfixturevalue(which)
    record = json.loads((folder / "predictions.jsonl").read_text().splitlines()[-1])
    tuned = artifact.load(folder, device=CPU)
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    head = tuned.model.get_submodule("base_model.model.classifier").modules_to_save.default.weight
    assert head.dtype == torch.float32
    assert torch.equal(head, saved["base_model.model.classifier.weight"])
    row = tuned.card.task.row_from_text("", "x").__class__(
        "x", {"tokens": record["tokens"], "labels": record["expected"]}
    )
    examples = tuned.card.task.encode([row], tuned.tokenizer, tuned.card.limit).examples
    inputs = tuned.card.task.collate(examples, 0)
    with torch.no_grad():
        outputs = tuned.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert tuned.card.task.decode(outputs, examples)[0]["predicted"] == record["predicted"]


def test_peft_alone_loads_the_adapter_to_the_same_logits(
    lora: tuple[RunResult, Path], probe_input: dict[str, torch.Tensor]
) -> None:
    folder = lora[1]
    tuned = artifact.load(folder, device=CPU)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    labels = tuned.card.task.model_dump()["labels"]
    base = AutoModelForTokenClassification.from_pretrained(tuned.base.files.folder, num_labels=len(labels))
    plain = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(plain(**probe_input).logits, tuned.model(**probe_input).logits)


def test_merging_adds_the_adapter_to_the_original_base(
    lora: tuple[RunResult, Path], tmp_path: Path, probe_input: dict[str, torch.Tensor]
) -> None:
    assert merge(lora[1], tmp_path / "merged") < 1e-4
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.hidden_dropout_prob == 0.1  # the base's own, not that of the training
    with torch.no_grad():
        expected = artifact.load(lora[1], device=CPU).model(**probe_input).logits
        torch.testing.assert_close(merged(**probe_input).logits, expected, atol=1e-4, rtol=0)


def test_a_quantized_run_is_merged_at_the_original_precision_and_reports_the_difference(
    qlora: tuple[RunResult, Path], tmp_path: Path
) -> None:
    folder = qlora[1]
    difference = merge(folder, tmp_path / "merged")
    assert 1e-3 < difference < 2  # what NF4 had rounded away
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    base = load_file(artifact.read_card(folder).model.files().folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.query"
    a, b = (adapter[f"base_model.model.bert.{name}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(merged[f"bert.{name}.weight"], base[f"{name}.weight"] + 8.0 * b @ a, atol=1e-6, rtol=0)


def test_full_fine_tuning_saves_the_full_model(tmp_path: Path, probe_input: dict[str, torch.Tensor]) -> None:
    result, folder = finished(tmp_path, "method=full", "training.steps=2", "training.learning_rate=1e-4")
    assert result.parameters.trainable == result.parameters.base
    assert result.parameters.trainable_fraction == 1.0
    plain = AutoModelForTokenClassification.from_pretrained(folder / "model").eval()
    with torch.no_grad():
        assert torch.equal(plain(**probe_input).logits, artifact.load(folder, device=CPU).model(**probe_input).logits)
    assert plain.config.id2label[0] == "B-AddressNumber"
    base = artifact.read_card(folder).model.files().folder
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (folder / "model", base))
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):  # training.dropout is of this training alone
        assert ours[name] == theirs[name] == 0.1
    assert plain.config.classifier_dropout is None


@pytest.mark.parametrize("quantization", slow_after(1, ["none", "nf4"]))
def test_a_run_in_bfloat16_is_merged_at_the_precision_of_the_published_base(tmp_path: Path, quantization: str) -> None:
    settings = ("training.precision=bfloat16", "training.steps=1", f"quantization={quantization}")
    result, folder = finished(tmp_path, *settings)
    assert result.environment.precision == "bfloat16"
    assert merge(folder, tmp_path / "merged") < 2
    assert {t.dtype for t in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.slow
def test_rounding_to_the_published_dtype_is_part_of_the_reported_difference(tmp_path: Path, minilm: ModelFiles) -> None:
    base = tmp_path / "base"
    shutil.copytree(minilm.folder, base, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    AutoModel.from_pretrained(minilm.folder, dtype=torch.bfloat16).save_pretrained(base)
    folder = finished(tmp_path, f"model={base}")[1]
    assert merge(folder, tmp_path / "merged") > 1e-3
    assert {t.dtype for t in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_a_damaged_adapter_is_never_used(lora: tuple[RunResult, Path], tmp_path: Path, name: str, damage: str) -> None:
    folder = copied(lora[1], tmp_path)
    path = folder / "adapter" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(content if damage == "flipped" else content[:-9])
    with pytest.raises(UserError, match=f"{name}: (not what was saved|cannot be read)"):
        artifact.load(folder, device=CPU)


def test_merging_never_overwrites(lora: tuple[RunResult, Path], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model.safetensors").write_text("precious")
    for output in (tmp_path / "taken", tmp_path / "taken" / "model.safetensors"):
        with pytest.raises(UserError, match="exists already"):
            merge(lora[1], output)
    assert (tmp_path / "taken" / "model.safetensors").read_text() == "precious"
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        merge(lora[1], tmp_path / "taken" / "model.safetensors" / "inside")


def test_merging_changes_nothing_outside_of_its_folder(lora: tuple[RunResult, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "notes.txt").write_text("precious")
    merge(lora[1], tmp_path / "mine")
    broken = copied(lora[1], tmp_path / "broken")
    (broken / "adapter" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="not what was saved"):
        merge(broken, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "mine", "mine.part"]
    assert (tmp_path / "mine.part" / "notes.txt").read_text() == "precious"


def test_a_text_that_is_too_long_is_answered_up_to_the_truncation(lora: tuple[RunResult, Path]) -> None:
    short, long = answers(lora[1], lambda task: rows_from_lines(task, ["12 Main Street", "", "word " * 600], "text"))
    assert (short["line"], long["line"]) == (1, 3)
    assert "words_unseen" not in short
    assert long["words_unseen"] == 600 - 510


def test_text_is_answered_with_entities(lora: tuple[RunResult, Path]) -> None:
    found = list(
        answers(lora[1], lambda task: rows_from_lines(task, ["123 Main Street, Springfield", "", "PO Box 7"], "text"))
    )
    assert [answer["words"] for answer in found] == [["123", "Main", "Street", ",", "Springfield"], ["PO", "Box", "7"]]
    for answer in found:
        for entity in answer["entities"]:
            assert " ".join(answer["words"][entity["start"] : entity["end"]]) == entity["text"]


@pytest.mark.slow
def test_gradient_checkpointing_trains_the_same(lora: tuple[RunResult, Path], tmp_path: Path) -> None:
    result, _ = finished(tmp_path, "training.gradient_checkpointing=true")
    assert result.curve.losses == pytest.approx(lora[0].curve.losses, abs=1e-6)


def test_a_failed_run_leaves_no_files_and_keeps_an_earlier_result(lora: tuple[RunResult, Path], tmp_path: Path) -> None:
    _, folder = finished(tmp_path)
    before = digest(folder)
    with pytest.raises(UserError, match="'qery' matches no linear layer"):
        finished(tmp_path, "method.targets=[qery]")
    assert digest(folder) == before
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["mine.yaml", "out"]


def test_a_run_locks_its_folder(tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".out.lock"), pytest.raises(UserError, match="another process is doing this run"):
        finished(tmp_path)


@pytest.mark.slow
def test_files_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "out.part" / "adapter").mkdir(parents=True)
    (tmp_path / "out.part" / "adapter" / "adapter_model.safetensors").write_text("half")
    finished(tmp_path)
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (
            "[qery]",
            "'qery' matches no linear layer (did you mean 'query'?); available are: query x6, key x6, value x6, dense",
        ),
        ("[query, nothing]", "'nothing' matches no linear layer; available are: "),
        ("[classifier]", "'classifier' is in the task head, which is always trained"),
    ],
)
def test_targets_that_match_nothing_or_the_head_list_what_exists(tmp_path: Path, targets: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        finished(tmp_path, f"method.targets={targets}")
    assert says in str(caught.value)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tuned model here"):
        list(answers(tmp_path, lambda task: rows_from_lines(task, ["text"], "text")))


def test_another_version_of_the_base_is_refused(lora: tuple[RunResult, Path], tmp_path: Path) -> None:
    path = copied(lora[1], tmp_path) / "adapter" / "peftlab.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="trained on another version of sentence-transformers/all-MiniLM-L6-v2"):
        artifact.load(path.parent, device=CPU)


def test_a_run_without_score_test_does_not_read_the_test_split(tmp_path: Path) -> None:
    result, folder = finished(tmp_path, "score_test=false", "training.steps=2", "training.epochs=null")
    assert set(result.metrics) == {"validation"}
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} == {"validation"}
