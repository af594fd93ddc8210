"""The loop's arithmetic: the same update however a step is cut, and nothing but training changes the model."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from peftlab.data.examples import Encoded, Example
from peftlab.errors import UserError
from peftlab.loading.model import Base, load_tokenizer
from peftlab.methods import TrainingPlan
from peftlab.methods.lora import Lora
from peftlab.tasks import Task
from peftlab.training.batching import epoch_batches
from peftlab.training.callbacks import Callback
from peftlab.training.loop import train
from peftlab.training.prediction import predict
from peftlab.training.settings import Seeds, Training
from peftlab.training.state import TrainState
from peftlab.training.train_log import Records, Scores, TrainLog
from peftlab.training.workload import Workload
from tests.conftest import MINILM

Load = Callable[..., Base]
EVALUATED = [
    "adamw",
    pytest.param(
        "schedule_free_adamw",
        marks=pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="needs schedulefree"),
    ),
]
Weights = Mapping[str, torch.Tensor]


def tokenizer(task: Task) -> PreTrainedTokenizerBase:
    return load_tokenizer(MINILM.files(), task)


def trained(
    base: Base,
    task: Task,
    encoded: Encoded,
    scores: list[float] | None = None,
    seeds: Seeds = Seeds(),  # noqa: B008 (frozen)
    dropout: float = 0.0,
    callback: Callback | None = None,
    learning_rate: float = 1e-3,
    **settings: object,
) -> tuple[Weights, TrainLog]:
    """Weights after a short training of LoRA; `scores` are what the evaluations will say."""
    method = Lora(rank=4, targets="attention", dropout=dropout)
    torch.manual_seed(seeds.initialization)
    model = method.apply(base.model, TrainingPlan(optimizer_steps=4, task_type=task.task_type, head=base.head))
    accelerator = Accelerator()
    coming = iter(scores or [])

    def evaluate() -> tuple[Scores, Records]:
        predict(
            model,
            task=task,
            examples=encoded.examples[:4],
            tokenizer=tokenizer(task),
            batch_tokens=64,
            accelerator=accelerator,
            autocast=contextlib.nullcontext,
        )
        torch.rand(7)  # an evaluation may draw from the generator
        return {task.selection: next(coming, 0.0)}, []

    log = train(
        Workload(
            model=model,
            method=method,
            task=task,
            examples=encoded.examples,
            padding_token=0,
            settings=Training.model_validate({"batch_examples": 8, "steps": 4, **settings}),
            learning_rate=learning_rate,
            seeds=seeds,
            accelerator=accelerator,
            evaluate=evaluate,
        ),
        [] if callback is None else [callback],
    )
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, log


def distance(one: Weights, other: Weights) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_a_step_in_four_micro_batches_is_the_step_in_one(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    """In float32, where a CPU's kernels sum in another order for another shape.

    Adam's small epsilon would magnify that rounding; with 1 its update is proportional to the gradient.
    """
    proportional = {"adam_epsilon": 1.0, "weight_decay": 0.0, "learning_rate": 0.1}
    one, log = trained(base_of(), tagging, encoded, **proportional)
    four, log_of_four = trained(base_of(), tagging, encoded, accumulation=4, **proportional)
    update = max(float(tensor.abs().max()) for name, tensor in one.items() if "lora_B" in name)  # they start at 0
    assert update > 1e-3
    assert distance(one, four) < 1e-5 * update
    assert [s.loss for s in log_of_four.steps] == pytest.approx([s.loss for s in log.steps], rel=1e-6)


def test_with_the_default_epsilon_micro_batches_differ_by_rounding_only(
    base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    one, _ = trained(base_of(), tagging, encoded)
    four, _ = trained(base_of(), tagging, encoded, accumulation=4)
    assert distance(one, four) < 1e-2 * 1e-3  # a hundredth of what a step may change a weight by


def test_the_same_seeds_give_the_same_bits_and_other_seeds_different_ones(
    base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    first, _ = trained(base_of(), tagging, encoded, dropout=0.1)
    again, _ = trained(base_of(), tagging, encoded, dropout=0.1)
    assert distance(first, again) == 0.0
    for name in ("initialization", "data_order", "dropout"):
        other, _ = trained(base_of(), tagging, encoded, dropout=0.1, seeds=Seeds.model_validate({name: 1}))
        assert distance(first, other) > 1e-5, name


@pytest.mark.parametrize("optimizer", EVALUATED)
def test_evaluation_changes_nothing(optimizer: str, base_of: Load, tagging: Task, encoded: Encoded) -> None:
    settings = {"dropout": 0.1, "keep_best": False, "optimizer": {"kind": optimizer}, "schedule": "constant"}
    without, _ = trained(base_of(), tagging, encoded, **settings)  # type: ignore[arg-type]
    with_many, log = trained(base_of(), tagging, encoded, evaluate_every=1, **settings)  # type: ignore[arg-type]
    assert len(log.evaluations) == 4
    assert distance(without, with_many) == 0.0


@pytest.mark.parametrize("optimizer", EVALUATED)
def test_the_best_state_is_kept_and_training_stops_when_it_gets_no_better(
    optimizer: str, base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    """A state is that of the weights that were evaluated, of an optimizer that averages, too."""
    scores, settings = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9], {"optimizer": {"kind": optimizer}, "schedule": "constant"}
    best, log = trained(base_of(), tagging, encoded, scores, steps=6, evaluate_every=1, patience=3, **settings)
    assert (log.best_step, len(log.steps), log.stopped_early) == (2, 5, True)
    upto, _ = trained(base_of(), tagging, encoded, steps=2, keep_best=False, **settings)
    assert distance(best, upto) == 0.0
    last, _ = trained(base_of(), tagging, encoded, scores, steps=6, evaluate_every=1, keep_best=False, **settings)
    assert distance(best, last) > 1e-5


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_copy_is_kept_only_with_keep_best(base_of: Load, tagging: Task, encoded: Encoded, keep_best: bool) -> None:
    class Watching(Callback):
        def on_train_begin(self, state: TrainState) -> None:
            self.state = state

    watching, scores = Watching(), [0.1, 0.5, 0.4, 0.3]
    settings = {"steps": 4, "evaluate_every": 1, "patience": 2, "keep_best": keep_best}
    _, log = trained(base_of(), tagging, encoded, scores, callback=watching, **settings)
    assert (log.best_step, len(log.steps), log.stopped_early) == (2, 4, False)
    copies = [name for name in watching.state.snapshot().tensors if name.startswith("best.")]
    assert len(copies) == (len(watching.state.trained) if keep_best else 0)


def test_the_loss_is_the_mean_over_the_targets_of_the_step(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    base = base_of()
    _, log = trained(base, tagging, encoded, steps=1, accumulation=3)
    lengths = [len(example) for example in encoded.examples]
    batch = epoch_batches(lengths, seed=0, epoch=0, examples=8)[0]
    fresh = base_of().model  # LoRA starts as the identity
    losses = []
    for i in batch:
        inputs = tagging.collate([encoded.examples[i]], 0)
        logits = fresh(input_ids=inputs["input_ids"]).logits[0]
        kept = inputs["labels"][0] != -100
        losses += torch.nn.functional.cross_entropy(logits[kept], inputs["labels"][0][kept], reduction="none").tolist()
    assert log.steps[0].loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert log.tokens == sum(lengths[i] for i in batch)


def test_a_step_without_targets_has_loss_zero_and_training_continues(
    base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    targets = [e.features["labels"] if i % 2 else [-100] * len(e) for i, e in enumerate(encoded.examples)]
    half = [Example({**e.features, "labels": t}, e.row) for e, t in zip(encoded.examples, targets, strict=True)]
    _, log = trained(base_of(), tagging, Encoded(half, {}), batch_examples=1, steps=12)
    assert 0 < sum(step.loss == 0.0 for step in log.steps) < 12


def test_gradient_clipping_bounds_the_update(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    free, _ = trained(base_of(), tagging, encoded, steps=1, clip=None, adam_epsilon=1.0, weight_decay=0.0)
    clipped, _ = trained(base_of(), tagging, encoded, steps=1, clip=1e-3, adam_epsilon=1.0, weight_decay=0.0)
    head = next(name for name in free if name.endswith("classifier.modules_to_save.default.weight"))
    start = base_of().model.classifier.weight
    assert (clipped[head] - start).norm() < (free[head] - start).norm() / 100


def test_a_loss_that_is_not_finite_stops_with_the_step(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    base = base_of()
    with torch.no_grad():
        base.model.classifier.weight.fill_(float("inf"))
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 1 .*lower training.learning_rate"):
        trained(base, tagging, encoded)


def test_predictions_come_in_order_whatever_the_batches(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    model = base_of().model.train()
    one, many = (
        predict(
            model,
            task=tagging,
            examples=encoded.examples,
            tokenizer=tokenizer(tagging),
            batch_tokens=tokens,
            accelerator=Accelerator(),
            autocast=contextlib.nullcontext,
        )
        for tokens in (1, 1024)
    )
    assert [r["tokens"] for r in one] == [list(e.row.fields["tokens"]) for e in encoded.examples]
    assert [r["predicted"] for r in one] == [r["predicted"] for r in many]
    assert model.training
