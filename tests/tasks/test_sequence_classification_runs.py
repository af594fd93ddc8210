"""Sequence classification on models: heads, poolers, runs with custom data, and merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForMaskedLM, BertForSequenceClassification

import peftlab.loading.model
from peftlab.errors import UserError
from peftlab.loading.model import LoadOptions, load_base
from peftlab.methods import METHODS, TrainingPlan
from peftlab.metrics import score
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe, load_recipe
from peftlab.runs import scoring
from peftlab.runs.run import run
from peftlab.tasks.sequence_classification import SequenceClassification as Task
from tests.contract.bases import tiny
from tests.sampling import slow_after
from tests.tasks.texts import row, rows


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_decoder_classifies_by_the_last_token_for_every_padding_token(architecture: str, tmp_path: Path) -> None:
    """transformers finds the last token by the config's padding token, which must be that of the batch."""
    sizes: dict[str, Any] = {"llama": {"num_key_value_heads": 2}, "gpt2": {"n_embd": 64, "n_head": 4}}[architecture]
    tiny(architecture, "AutoModelForCausalLM", vocab_size=512, **sizes).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).pad_token_id == 0
    task = Task().bind(rows("a", "b"))
    settings: Any = {"device": torch.device("cpu"), "compute": torch.float32, "padding_token": 9}
    files = ModelFiles(folder=tmp_path, source="a test", fingerprint="")
    base = load_base(Model(id=str(tmp_path)), files, task, QUANTIZATIONS["none"](), LoadOptions(**settings))
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
        return load_base(
            Model(id=str(tmp_path / "base")), files, task, QUANTIZATIONS[quantization](), LoadOptions(**settings)
        )

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
    first, again = (
        load_base(Model(id="a"), files, task, QUANTIZATIONS["none"](), LoadOptions(**settings)).model for _ in range(2)
    )
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
        base = load_base(Model(id="a"), files, task, QUANTIZATIONS[quantization](), LoadOptions(**settings))
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
            LoadOptions(**settings),
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
        load_base(
            Model(id=str(tmp_path)),
            files,
            Task().bind(rows("a", "b")),
            QUANTIZATIONS["none"](),
            LoadOptions(**settings),
        )


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
    from peftlab.runs.inference import answers, rows_from_lines

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
    answer = next(answers(tmp_path / "run", lambda task: rows_from_lines(task, ["a film\tgreat"], "text")))
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
