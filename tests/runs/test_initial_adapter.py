"""`init_from`: a training that starts from the adapter of an earlier run, of the same task or another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from peftlab.errors import UserError
from peftlab.io.atomic import sha256
from peftlab.loading.attach import training_plan
from peftlab.loading.inputs import read_inputs
from peftlab.recipe import Recipe, load_recipe
from peftlab.results.run_result import RunResult
from peftlab.runs import artifact, initial_adapter
from peftlab.runs.run import run
from tests.conftest import RECIPE
from tests.sampling import slow_after

CPU = torch.device("cpu")
TEXTS = [{"text": f"{word} {number} street", "label": word} for number in range(12) for word in ("red", "blue", "gray")]


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("first")
    return run(recipe(folder, "training.steps=2", "training.evaluate_every=2"), folder / "out"), folder / "out"


def attached(values: Recipe) -> tuple[torch.nn.Module, torch.nn.Module, initial_adapter.Origin]:
    """The model that starts from the adapter, the base's new head, and the origin."""
    inputs = read_inputs(values, Accelerator(cpu=True))
    origin = initial_adapter.find(values, inputs)
    assert origin is not None
    base = inputs.base(CPU, "float32")
    head = base.model.get_submodule(base.head[-1])
    settings = {"task": inputs.task, "tokenizer": inputs.tokenizer, "optimizer_steps": 20, "longest_input": 64}
    return initial_adapter.attach(values, base, training_plan(values, base, **settings), origin), head, origin


@pytest.mark.parametrize(
    "override",
    slow_after(
        1,
        [
            "method.dropout=0.1",
            "method.initialization=pissa",
            "method.weight_decomposed=true",
            "method=ia3",
            "method=bitfit",
            "method=prompt_tuning",
            "method=adapter",
        ],
    ),
)
def test_training_starts_from_the_saved_model_bit_for_bit(
    override: str, first: tuple[RunResult, Path], tmp_path: Path, probe_input: dict[str, torch.Tensor]
) -> None:
    folder, dropout = first[1], override == "method.dropout=0.1"
    if not dropout:
        folder = tmp_path / "out"
        run(recipe(tmp_path, override, "training.steps=2", "training.evaluate_every=2"), folder)
    model, _, origin = attached(recipe(tmp_path, override, f"init_from={folder}"))
    saved = artifact.load(folder, device=CPU).model
    assert origin.keeps_head
    with torch.no_grad():
        assert torch.equal(model.eval()(**probe_input).logits, saved(**probe_input).logits)
    model.train()(**probe_input).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    dropouts = {module.p for name, module in model.named_modules() if ".lora_dropout." in name and hasattr(module, "p")}
    assert dropouts == ({0.1} if dropout else set())  # this run's, not the earlier one's


def colors(folder: Path) -> tuple[str, str]:
    """Overrides that select a task of another kind on other data."""
    data = folder / "colors.jsonl"
    data.write_text("\n".join(map(json.dumps, TEXTS)))
    return "task=sequence_classification", f"data={{train: {data}}}"


def test_another_task_gets_the_adapter_and_a_new_head(first: tuple[RunResult, Path], tmp_path: Path) -> None:
    model, head, origin = attached(recipe(tmp_path, *colors(tmp_path), f"init_from={first[1]}"))
    tensors = load_file(origin.folder / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    adapters = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    assert len(adapters) == 24
    for name, tensor in adapters.items():
        assert torch.equal(parameters[name.replace(".weight", ".default.weight")], tensor)
    assert not origin.keeps_head
    wrapper = model.get_submodule("base_model.model.classifier")
    assert torch.equal(wrapper.modules_to_save.default.weight, head.weight)  # type: ignore[union-attr]
    assert wrapper.modules_to_save.default.weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["lora", "prefix_tuning", "prompt_tuning", "bitfit", "ia3", "{kind: peft, type: VERA}"]
)
def test_every_kind_of_method_trains_on_for_another_task(method: str, tmp_path: Path) -> None:
    short = (f"method={method}", "training.steps=2", "training.evaluate_every=2")
    run(recipe(tmp_path, *short), tmp_path / "out")
    second = run(recipe(tmp_path, *short, *colors(tmp_path), f"init_from={tmp_path / 'out'}"), tmp_path / "second")
    assert second.init_from is not None
    assert second.init_from.head is False
    artifact.load(tmp_path / "second", device=CPU)


@pytest.mark.slow
def test_a_head_alone_is_nothing_to_start_another_task_from(tmp_path: Path) -> None:
    run(recipe(tmp_path, "method=head", "training.steps=2", "training.evaluate_every=2"), tmp_path / "head")
    other = recipe(tmp_path, "method=head", *colors(tmp_path), f"init_from={tmp_path / 'head'}")
    with pytest.raises(UserError, match="holds only a task head, for another task"):
        attached(other)


def test_the_lineage_is_recorded_and_does_not_depend_on_the_path(first: tuple[RunResult, Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(first[1], moved)
    result = run(recipe(tmp_path, f"init_from={moved / 'adapter'}", "training.steps=2"), tmp_path / "second")
    lineage = result.init_from
    assert lineage is not None
    assert (lineage.name, lineage.recipe_digest) == ("mine", first[0].digest)
    assert lineage.fingerprint == initial_adapter.current_fingerprint(str(first[1]))
    assert (lineage.task, lineage.quantization, lineage.head) == ("token_classification", "none", True)
    assert artifact.read_card(tmp_path / "second").init_from == lineage
    assert artifact.read_card(first[1]).init_from is None
    third = recipe(tmp_path, f"init_from={tmp_path / 'second'}")
    origin = initial_adapter.find(third, read_inputs(third, Accelerator(cpu=True)))
    assert origin is not None
    assert origin.record.init_from == lineage
    assert third.digest != first[0].digest
    assert Recipe.from_record({k: v for k, v in third.to_record().items() if k != "init_from"}).init_from is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method.rank=8",), r"trained with method.rank 4, and the recipe has 8"),
        (("method=ia3",), r"trained with method lora, and the recipe's is ia3"),
        (("method=full",), r"full fine-tuning starts from a complete model: give it as model"),
        (
            ("model=google-bert/bert-base-cased",),
            r"trained on sentence-transformers/all-MiniLM-L6-v2, and the",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused_without_loading(
    overrides: tuple[str], said: str, first: tuple[RunResult, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        initial_adapter.check(recipe(tmp_path, f"init_from={first[1]}", *overrides))


def test_another_version_of_the_base_is_refused(first: tuple[RunResult, Path], tmp_path: Path) -> None:
    shutil.copytree(first[1], tmp_path / "copy")
    card = tmp_path / "copy" / "adapter" / artifact.FILE
    values = json.loads(card.read_text())
    card.write_text(json.dumps({**values, "model_fingerprint": "0" * 64}))
    values = recipe(tmp_path, f"init_from={tmp_path / 'copy'}")
    with pytest.raises(UserError, match=r"with the fingerprint 000000000000, but model: .* its base must be the same"):
        initial_adapter.find(values, read_inputs(values, Accelerator(cpu=True)))


def test_an_adapter_that_does_not_fit_is_refused(first: tuple[RunResult, Path], tmp_path: Path) -> None:
    """PEFT skips tensors that have no place in the model."""
    shutil.copytree(first[1], tmp_path / "copy")
    file = tmp_path / "copy" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    extra = {
        name.replace("layer.0.", "layer.9."): tensor.clone() for name, tensor in tensors.items() if "layer.0." in name
    }
    save_file({**tensors, **extra}, file, metadata={"format": "pt"})
    card = tmp_path / "copy" / "adapter" / artifact.FILE
    values = json.loads(card.read_text())
    values["files"][file.name] = sha256(file)
    card.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"4 of its \d+ tensors have no place in this run's model, e.g. .*layer.9"):
        attached(recipe(tmp_path, f"init_from={tmp_path / 'copy'}"))


def test_an_adapter_given_as_model_points_to_init_from(first: tuple[RunResult, Path], tmp_path: Path) -> None:
    for folder in (first[1], first[1] / "adapter"):
        with pytest.raises(UserError, match=r"holds an adapter, not a base model: .* and the adapter as init_from"):
            recipe(tmp_path, f"model={folder}")
