"""What happened in training, step by step and look by look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

Scores = dict[str, float]
Records = list[dict[str, Any]]  # one decoded prediction a row


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    number: int  # from 1
    epoch: float  # passes done
    loss: float  # nats a target, before the step
    learning_rate: float
    tokens: int  # without padding
    seconds: float  # of training since the start


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation split."""

    step: int
    epoch: float
    loss: float  # training's mean since the last look, nats a target
    scores: Scores
    selectable: bool  # whether the method lets the state be kept


@dataclass(frozen=True)
class MicroBatchReduction:
    """Memory ran out, and from this step on a device makes more and smaller micro-batches of its share."""

    step: int
    accumulation: int


@dataclass
class TrainLog:
    """What happened in training."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    halvings: list[MicroBatchReduction] = field(default_factory=list)
    best_step: int | None = None
    stopped_early: bool = False
    records: Records = field(default_factory=list)  # validation's, by the state that training ended with
    tokens: int = 0  # without padding, over all steps and processes
    padded_tokens: int = 0  # with padding
    unused: list[str] = field(default_factory=list)  # tensors of a base trained whole that no forward used: frozen
    seconds: float = 0.0  # of training alone: no loading, no evaluation


class Observer(Protocol):
    """Who wants to see a run while it goes."""

    def step(self, step: Step, total: int, log: TrainLog) -> None: ...
    def evaluation(self, evaluation: Evaluation, best: bool) -> None: ...
    def halving(self, halving: MicroBatchReduction) -> None: ...


class Observers:
    """Several of them, told one after another."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def step(self, step: Step, total: int, log: TrainLog) -> None:
        for observer in self._observers:
            observer.step(step, total, log)

    def evaluation(self, evaluation: Evaluation, best: bool) -> None:
        for observer in self._observers:
            observer.evaluation(evaluation, best)

    def halving(self, halving: MicroBatchReduction) -> None:
        for observer in self._observers:
            observer.halving(halving)
