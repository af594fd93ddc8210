"""Base of the classification tasks: named classes, and a cross-entropy with label smoothing and class weights."""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from peftlab.data.examples import Row
from peftlab.errors import UserError, nearest
from peftlab.tasks.task import IGNORED, Task

if TYPE_CHECKING:
    import torch

SHOWN = 12  # labels listed in a message
LABELS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "items": {"anyOf": [{"type": name} for name in ("string", "integer", "boolean")]},
            "minItems": 1,
            "type": "array",
        },
        {"additionalProperties": {"type": "string"}, "minProperties": 1, "type": "object"},
    ]
}

Self = TypeVar("Self", bound="Classification")


def label_name(value: object) -> object:
    """A label as text, so that `1` and `"1"` are the same class in every file format. Other values are returned as is.

    Surrounding white space is removed, as by `datasets.ClassLabel`. `1.0` is 1: pandas writes integers so if some are
    missing.

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
    """A task over classes with names."""

    labels: (
        Annotated[
            list[Annotated[str, BeforeValidator(label_name, json_schema_input_type=str | int | bool)]],
            Field(min_length=1),
            WithJsonSchema(LABELS_SCHEMA, mode="validation"),
        ]
        | None
    ) = None
    """Names of the classes, in the order of the head's outputs; or a mapping from the values in the data to names, e.g.
    {0: anger, 1: joy}. Null: the labels that occur in the data, sorted."""
    label_codes: dict[str, str] = Field(default={}, exclude_if=operator.not_, examples=[{"0": "anger", "1": "joy"}])
    """Name of the class by its value in the data; set by a mapping in `labels`."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Fraction of each target that is spread evenly over all classes (Szegedy et al., 2016)."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = None
    """Factor of the loss by label, e.g. {rare: 5}; a label without one has 1. `balanced`: examples / (classes *
    examples of the class), counted in the training rows. Null: all 1."""

    @model_validator(mode="before")
    @classmethod
    def _codes_of_labels(cls, values: Any) -> Any:
        labels = values.get("labels") if isinstance(values, dict) else None
        if not isinstance(labels, dict):
            return values
        if not labels or not all(isinstance(name, str) for name in labels.values()):
            raise ValueError("labels: a list of names, or a mapping from values to names was expected")
        codes = {str(label_name(code)): name for code, name in labels.items()}
        return {**values, "labels": list(dict.fromkeys(codes.values())), "label_codes": codes}

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str] | None) -> list[str] | None:
        for position, label in enumerate(labels or []):
            if label in (labels or [])[:position]:
                raise ValueError(f"{label!r} is listed twice")
        return labels

    def _named(self, value: object) -> Any:
        """The value with the names of classes in place of their codes; a list item by item."""
        if isinstance(value, (list, tuple)):
            return [self._named(item) for item in value]
        name = label_name(value)
        return self.label_codes.get(name, value) if isinstance(name, str) else value

    def model_settings(self) -> dict[str, Any]:
        labels = self._labels()
        return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": label_ids(labels)}

    def cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum in nats over the targets. logits (targets, classes), labels (targets,) int64, -100 ignored.

        The loss of a target y is (1 - s) w[y] l[y] + s / K * (w[1] l[1] + ... + w[K] l[K]), where l = -log
        softmax(logits), s is the label smoothing and w the class weights.
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
        targets = {tuple(labels) for row in rows for labels in self._target_labels(row)}
        if len(targets) == 1:
            (only,) = targets
            raise UserError(f"data: every label of train is {', '.join(only) or 'none'!r}: there is nothing to learn")
        trained = {label for labels in targets for label in labels}
        missing = [label for label in self.labels or [] if label not in trained]
        if not missing:
            return None
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        return f"{', '.join(missing[:SHOWN])}{more}: no training row has this label, so it is never learned"

    @abc.abstractmethod
    def _target_labels(self, row: Row) -> Iterable[Sequence[str]]:
        """The labels of each target of the row."""

    def _labels(self) -> list[str]:
        assert self.labels is not None, "bind() first"
        return self.labels

    def _with_balanced_weights(self: Self, targets: Sequence[str]) -> Self:
        """A copy in which `balanced` is replaced by weights, counted over the labels of the training rows."""
        if self.class_weights != "balanced":
            return self
        import numpy as np
        from sklearn.utils.class_weight import compute_class_weight

        classes = np.unique(np.array(targets))
        weights = compute_class_weight("balanced", classes=classes, y=np.array(targets))
        return self.model_copy(update={"class_weights": dict(zip(classes.tolist(), weights.tolist(), strict=True))})

    def _check_weights(self) -> None:
        """Raise UserError if a class weight belongs to no label."""
        labels = self._labels()
        for label in self.class_weights if isinstance(self.class_weights, dict) else ():
            if label not in labels:
                raise UserError(f"task.class_weights: unknown label {label!r}{known_labels(label, labels)}")


def label_ids(labels: Sequence[str]) -> dict[str, int]:
    """Class number by label."""
    return {label: number for number, label in enumerate(labels)}


def known_labels(label: str, labels: Iterable[str]) -> str:
    """Ending of a message about an unknown label: ` (did you mean 'x'?); known are x, y`."""
    labels = list(labels)
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return f"{nearest(label, labels)}; known are {', '.join(labels[:SHOWN])}{more}"
