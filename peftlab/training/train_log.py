"""Log of a training: its steps and evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Scores = dict[str, float]
Records = list[dict[str, Any]]  # one decoded prediction per row


class Validation(NamedTuple):
    """Scores of the validation split, one record per example, and the loss."""

    scores: Scores
    records: Records
    loss: float | None = None  # mean over the targets, in nats; None if it is not computed


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int  # from 1
    epoch: float  # passes over the examples that are done
    loss: float  # nats per target token, before the update
    learning_rate: float
    tokens: int  # without padding
    seconds: float  # of training since the start


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation split."""

    step: int
    epoch: float
    loss: float  # mean training loss since the previous evaluation, nats per target token
    scores: Scores
    selectable: bool  # the method allows this state to be the best one, e.g. it has its final rank
    validation_loss: float | None = None  # nats per target of the validation split; None in older checkpoints


@dataclass(frozen=True)
class MicroBatchReduction:
    """Out of memory at this step: from there on each device uses `accumulation` smaller micro-batches per step."""

    step: int
    accumulation: int


@dataclass
class TrainLog:
    """Steps, evaluations and totals of a training."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    micro_batch_reductions: list[MicroBatchReduction] = field(default_factory=list)
    best_step: int | None = None
    stopped_early: bool = False
    records: Records = field(default_factory=list)  # validation predictions of the final state
    tokens: int = 0  # without padding, over all steps and processes
    padded_tokens: int = 0  # with padding
    unused: list[str] = field(default_factory=list)  # trainable tensors that no forward used; frozen at the end
    seconds: float = 0.0  # training steps only, without loading and evaluation
