"""What the classifying tasks share: named classes, and a cross-entropy that may be smoothed and weighted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator

from peftlab.data.examples import Row
from peftlab.errors import UserError, nearest
from peftlab.tasks.task import IGNORED, Task

if TYPE_CHECKING:
    import torch

SHOWN = 12  # labels that a message lists

Self = TypeVar("Self", bound="Classification")


def label_name(value: object) -> object:
    """A label as text: `1` and `"1"` are the same class, whatever the file format; what is no label stays as it is.

    White space around it is no part of it, as for `datasets.ClassLabel`, and `1.0` is how a table with gaps says 1.

    >>> label_name(1), label_name("1 "), label_name(True), label_name(1.0), label_name(1.5)
    ('1', '1', 'true', '1', 1.5)
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        return value.strip() or value
    return str(value) if isinstance(value, int) else value


class Classification(Task):
    """Classes by name. Without a given list they are those of the data."""

    auto_class: ClassVar[str]

    labels: (
        Annotated[
            list[Annotated[str, BeforeValidator(label_name, json_schema_input_type=str | int | bool)]],
            Field(min_length=1),
        ]
        | None
    ) = None
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # share of each target that is spread evenly over all classes
    # By label, 1 if not named; balanced: examples / (classes * examples of the class), counted in train.
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = None

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str] | None) -> list[str] | None:
        for position, label in enumerate(labels or []):
            if label in (labels or [])[:position]:
                raise ValueError(f"{label!r} stands twice")
        return labels

    def model_settings(self) -> dict[str, Any]:
        labels = self._labels()
        return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": numbers(labels)}

    def cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum in nats over the targets. logits (targets, classes), labels (targets,) int64, -100 ignored.

        Of a target y it is (1 - s) w[y] l[y] + s / K * (w[1] l[1] + ... + w[K] l[K]), where l = -log softmax(logits),
        s is the smoothing (Szegedy et al., 2016) and w the weights.
        """
        import torch
        from torch.nn import functional

        weights = self.class_weights
        assert weights != "balanced", "from_training() first"
        return functional.cross_entropy(
            logits.float(),
            labels,
            weight=torch.tensor([weights.get(label, 1.0) for label in self._labels()], device=logits.device)
            if weights
            else None,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def check_training_rows(self, rows: Sequence[Row]) -> str | None:
        lessons = {tuple(lesson) for row in rows for lesson in self._lessons(row)}
        if len(lessons) == 1:
            (only,) = lessons
            raise UserError(f"data: every label of train is {', '.join(only) or 'none'!r}: there is nothing to learn")
        taught = {label for lesson in lessons for label in lesson}
        missing = [label for label in self.labels or [] if label not in taught]
        if not missing:
            return None
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        return f"{', '.join(missing[:SHOWN])}{more}: no training row has it, so it is never learnt"

    def _lessons(self, row: Row) -> Iterable[Sequence[str]]:
        """The labels of each of the row's targets."""
        raise NotImplementedError

    def _labels(self) -> list[str]:
        assert self.labels is not None, "bind() first"
        return self.labels

    def _counted(self: Self, targets: Sequence[str]) -> Self:
        """A copy whose balanced class weights are numbers, counted over the labels of the training rows."""
        if self.class_weights != "balanced":
            return self
        import numpy as np
        from sklearn.utils.class_weight import compute_class_weight

        classes = np.unique(np.array(targets))
        weights = compute_class_weight("balanced", classes=classes, y=np.array(targets))
        return self.model_copy(update={"class_weights": dict(zip(classes.tolist(), weights.tolist(), strict=True))})

    def _check_weights(self) -> None:
        """Whether the labels, now known, are those that have weights."""
        labels = self._labels()
        for label in self.class_weights if isinstance(self.class_weights, dict) else ():
            if label not in labels:
                raise UserError(f"task.class_weights: unknown label {label!r}{known(label, labels)}")


def numbers(labels: Sequence[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)}


def known(label: str, labels: Iterable[str]) -> str:
    """` (did you mean 'x'?); known are x, y`, for a message."""
    labels = list(labels)
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return f"{nearest(label, labels)}; known are {', '.join(labels[:SHOWN])}{more}"
