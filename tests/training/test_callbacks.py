"""Callbacks: each hook is called when its docstring says, and a request of one of them is heard."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftlab.data.examples import Encoded
from peftlab.loading.model import Base
from peftlab.tasks import Task
from peftlab.training.callbacks import Callback, CallbackList
from peftlab.training.interruption import Interrupted
from peftlab.training.state import RngState, Snapshot, TrainState
from tests.training.test_loop import distance, trained

Load = Callable[..., Base]


class Recorder(Callback):
    """Records the names of the hooks that are called, without repetitions one after the other."""

    def __init__(self) -> None:
        self.hooks: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and self.hooks[-1:] != [name]:
            self.hooks.append(name)
        return super().__getattribute__(name)


def test_hooks_are_called_in_the_order_of_a_step(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    recorder = Recorder()
    trained(base_of(), tagging, encoded, steps=2, evaluate_every=2, callback=recorder)
    step = ["on_phase_end", "on_gradients", "on_phase_end", "on_step_end"]
    assert recorder.hooks == ["on_train_begin", *step, *step, "on_evaluation", "on_train_end"]


def test_the_phases_of_a_step_in_two_micro_batches(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    phases = []

    class Phases(Callback):
        def on_phase_end(self, phase: str) -> None:
            phases.append(phase)

    trained(base_of(), tagging, encoded, steps=1, accumulation=2, callback=Phases())
    assert phases == ["inputs", "forward", "backward", "forward", "backward", "optimizer"]


@pytest.mark.parametrize("early", [False, True], ids=["", "of an early checkpoint"])
def test_a_snapshot_restored_at_the_start_gives_the_same_bits(
    early: bool, base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    """Early checkpoints hold the learning rates of the optimizer's groups, and no other numbers."""

    class Save(Callback):
        snapshot: Snapshot | None = None

        def on_train_begin(self, state: TrainState) -> None:
            self.state = state

        def request(self, step: int) -> tuple[bool, bool]:
            return step == 2, False

        def on_save(self, rng: RngState | None = None) -> str:
            snapshot = self.state.snapshot(rng)
            self.snapshot = Snapshot(
                snapshot.step, {name: tensor.clone() for name, tensor in snapshot.tensors.items()}, snapshot.values
            )
            return ""

    class Restore(Callback):
        def on_train_begin(self, state: TrainState) -> None:
            assert save.snapshot is not None
            values = dict(save.snapshot.values)
            if early:
                values["learning_rates"] = [group["lr"] for group in values.pop("groups")]
            state.restore(dataclasses.replace(save.snapshot, values=values))

    save = Save()
    uninterrupted, _ = trained(base_of(), tagging, encoded, dropout=0.1, callback=save)
    torch.rand(3)
    resumed, log = trained(base_of(), tagging, encoded, dropout=0.1, callback=Restore())
    assert len(log.steps) == 4
    assert distance(uninterrupted, resumed) == 0.0


def test_a_request_to_stop_ends_training_after_the_step(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    class Stop(Recorder):
        def request(self, step: int) -> tuple[bool, bool]:
            return False, step == 2

        def on_interrupt(self) -> None:
            raise Interrupted(15)

    stop = Stop()
    with pytest.raises(Interrupted):
        trained(base_of(), tagging, encoded, callback=stop)
    assert stop.hooks.count("on_step_end") == 2
    assert stop.hooks[-1] == "on_interrupt"


def test_a_list_of_callbacks_joins_their_requests_and_clauses() -> None:
    class Saves(Callback):
        def request(self, step: int) -> tuple[bool, bool]:
            return True, False

        def on_save(self, rng: RngState | None = None) -> str:
            return "saved; "

    both = CallbackList([Callback(), Saves()])
    assert both.request(1) == (True, False)
    assert both.on_save() == "saved; "
