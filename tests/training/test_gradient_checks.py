"""A run stops with one line rather than training nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.loading.model import Base
from peftlab.methods import Method, TrainingPlan
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.lora import Lora
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.recipe import load_recipe
from peftlab.runs.run import run
from peftlab.tasks import Task
from peftlab.tasks.token_classification import TokenClassification
from peftlab.training.loop import train
from peftlab.training.settings import Seeds, Training
from peftlab.training.train_log import TrainLog
from peftlab.training.workload import Workload
from tests.contract.bases import tiny

Trains = Callable[..., TrainLog]
Hook = Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]


class Unused(Lora):
    """Adds a parameter that no layer reads."""

    kind: Literal["lora"] = "lora"

    def apply(self, model: Any, plan: TrainingPlan) -> Any:
        wrapped = super().apply(model, plan)
        wrapped.register_parameter("lora_unused", nn.Parameter(torch.ones(2)))
        return wrapped


class Unowned(Lora):
    """Gives the optimizer other parameters."""

    kind: Literal["lora"] = "lora"

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [nn.Parameter(torch.zeros(1))], "lr": learning_rate}]


@pytest.fixture
def trains(base_of: Callable[..., Base], tagging: Task, encoded: Encoded) -> Trains:
    """Four steps, an evaluation after the second; `hook` sits on one LoRA layer from `when` on."""

    def run(hook: Hook | None = None, *, when: str = "start", method: type[Lora] = Lora) -> TrainLog:
        base = base_of()
        lora = method(rank=2, targets="attention")
        model = lora.apply(base.model, TrainingPlan(optimizer_steps=4, task_type=tagging.task_type, head=base.head))
        layer = next(module for name, module in model.named_modules() if name.endswith("lora_B.default"))

        def put(now: str) -> None:
            if hook is not None and now == when:
                layer.register_forward_hook(hook)

        def evaluate() -> tuple[dict[str, float], list[dict[str, Any]]]:
            put("evaluation")
            return {tagging.selection: 0.0}, []

        put("start")
        return train(
            Workload(
                model=model,
                method=lora,
                task=tagging,
                examples=encoded.examples[:8],
                padding_token=0,
                settings=Training(steps=4, batch_examples=4, evaluate_every=2),
                learning_rate=1e-3,
                seeds=Seeds(),
                accelerator=Accelerator(cpu=True),
                evaluate=evaluate,
            )
        )

    return run


def test_correct_training_passes(trains: Trains) -> None:
    assert len(trains().steps) == 4


def test_a_tensor_without_gradient_stops_it_at_the_first_step(trains: Trains) -> None:
    with pytest.raises(UserError, match=r"at step 1, 2 of \d+ trainable tensors get no gradient \(.*lora_A") as caught:
        trains(lambda module, inputs, output: output.detach())
    assert "\n" not in str(caught.value)


def test_a_gradient_lost_after_an_evaluation_stops_it(trains: Trains) -> None:
    with pytest.raises(UserError, match="at step 3, after an evaluation, 2 of"):
        trains(lambda module, inputs, output: output.detach(), when="evaluation")


def test_a_gradient_that_is_always_zero_stops_it_even_if_others_are_not(trains: Trains) -> None:
    with pytest.raises(UserError, match="at step 3, after an evaluation, 2 of"):
        trains(lambda module, inputs, output: output * 0)


def test_parameters_that_do_not_change_stop_it(trains: Trains) -> None:
    with pytest.raises(UserError, match=r"after 2 steps none of \d+ trainable tensors has changed"):
        trains(method=Unowned)


# --- parts that no forward uses: SqueezeBERT's token classifier has a pooler that nothing asks -----------------------

POOLER = ["transformer.pooler.dense.weight", "transformer.pooler.dense.bias"]


def squeezebert(auto: str = "AutoModelForTokenClassification") -> Any:
    return tiny("squeezebert", auto, vocab_size=512, embedding_size=64, num_labels=3)


def trained(
    model: nn.Module,
    method: Method,
    when_evaluated: Callable[[], object] = lambda: None,
    tags: tuple[int, ...] = (0, 1, 2),
    **how: Any,
) -> TrainLog:
    labels = TokenClassification(labels=["O", "B-X", "I-X"])
    rows = [([5 + number, 9, 7], list(tags)) for number in range(8)]

    def evaluate() -> tuple[dict[str, float], list[dict[str, Any]]]:
        when_evaluated()
        return {labels.selection: 0.0}, []

    return train(
        Workload(
            model=method.apply(model, TrainingPlan(optimizer_steps=4, task_type="TOKEN_CLS", head=("classifier",))),  # type: ignore[arg-type]
            method=method,
            task=labels,
            examples=[Example({"input_ids": ids, "labels": tags}, Row("test", {})) for ids, tags in rows],
            padding_token=0,
            settings=Training(**{"steps": 4, "batch_examples": 4, "evaluate_every": 2, **how}),
            learning_rate=1e-3,
            seeds=Seeds(),
            accelerator=Accelerator(cpu=True),
            evaluate=evaluate,
        )
    )


@pytest.mark.parametrize(("method", "unused"), [(Full(), POOLER), (BitFit(), POOLER[1:])], ids=["full", "bitfit"])
@pytest.mark.parametrize("evaluate_every", [2, 4])
def test_unused_parameters_of_a_fully_trained_base_are_frozen_and_reported(
    method: Method, unused: list[str], evaluate_every: int
) -> None:
    model = squeezebert()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    log = trained(model, method, evaluate_every=evaluate_every)
    assert log.unused == unused
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert (
        still
        == frozen
        == {name for name in before if not method.trains(name, model)} - {"classifier.weight"}
        | {  # type: ignore[attr-defined]
            *unused
        }
    )


def test_unused_parameters_that_a_method_added_are_an_error() -> None:
    with pytest.raises(UserError, match=r"at step 1, 1 of \d+ trainable tensors get no gradient \(lora_unused"):
        trained(tiny("bert", "AutoModelForTokenClassification", num_labels=3), Unused(rank=2))


def test_a_gradient_lost_after_an_evaluation_is_not_reported_as_unused() -> None:
    model = squeezebert()
    layer = model.transformer.encoder.layers[1].output

    def cut() -> None:
        layer.register_forward_hook(lambda module, inputs, output: output.detach())

    with pytest.raises(UserError, match="at step 3, after an evaluation"):
        trained(model, Full(), cut)


def test_a_run_reports_the_parameters_that_it_froze(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = squeezebert("AutoModel")
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer(model.config).save_pretrained(tmp_path / "base")
    recipe = load_recipe(recipe_file, [f"model={tmp_path / 'base'}", "method=full", "task.truncate=true"])
    result = run(recipe, tmp_path / "run")
    assert result.unused == POOLER
    assert result.parameters.trainable == result.parameters.base - 64 * 64 - 64
    assert "2 tensors that no forward used, e.g. transformer.pooler.dense.weight" in capsys.readouterr().out


def test_a_tokenizer_of_another_model_is_an_error_before_training(recipe_file: Path, tmp_path: Path) -> None:
    model = tiny("bert", "AutoModel", vocab_size=40)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer(tiny("bert", "AutoModel", vocab_size=512).config).save_pretrained(tmp_path / "base")
    recipe = load_recipe(recipe_file, [f"model={tmp_path / 'base'}", "task.truncate=true"])
    with pytest.raises(UserError, match=r"its tokenizer gives token \d+, but there are 40 embeddings"):
        run(recipe, tmp_path / "run")


# --- data that teach nothing: no method is to blame ------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "step"), [(0.01, 3), (0.0, 2)])
def test_examples_without_targets_are_reported_and_not_the_method(decay: float, step: int) -> None:
    bert = tiny("bert", "AutoModelForTokenClassification", num_labels=3)
    with pytest.raises(UserError, match=f"^data: at step {step} the loss and every gradient are 0"):
        trained(bert, Lora(rank=2), tags=(-100, -100, -100), weight_decay=decay)


TAUGHT, UNTAUGHT, NOTHING = ["B-X", "O"], ["B-Y", "O"], ["O", "O"]


@pytest.mark.parametrize(
    ("train", "validation", "says"),
    [
        (NOTHING, TAUGHT, "^data: every label of train is 'O': there is nothing to learn$"),
        (TAUGHT, NOTHING, "^data: entity_f1 is undefined on the validation split's 8 examples, so that no best"),
        (TAUGHT, UNTAUGHT, None),
    ],
)
def test_a_run_reports_data_without_targets(
    train: list[str], validation: list[str], says: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("bert", "AutoModel", vocab_size=512, max_position_embeddings=64)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer(model.config).save_pretrained(tmp_path / "base")
    for split, tags in (("train", train), ("validation", validation), ("test", NOTHING)):
        rows = [{"tokens": [f"{split[:2]}{number}", "St"], "labels": tags} for number in range(8)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"model: {tmp_path / 'base'}\ntask: token_classification\n"
        f"data: {{train: {tmp_path}/train.jsonl, validation: {tmp_path}/validation.jsonl, "
        f"test: {tmp_path}/test.jsonl}}\n"
        "method: {kind: lora, rank: 2}\ntraining: {steps: 2, batch_examples: 4, precision: float32}\n"
    )
    recipe = load_recipe(tmp_path / "mine.yaml")
    if says is not None:
        with pytest.raises(UserError, match=says):
            run(recipe, tmp_path / "run")
        return
    result = run(recipe, tmp_path / "run")
    assert "labels     B-Y: no training row has this label, so it is never learned" in capsys.readouterr().out
    assert result.metrics["test"].keys() == {"token_accuracy"}  # no entity is expected there: 0 would be made up
