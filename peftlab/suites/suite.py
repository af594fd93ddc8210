"""The suite: methods x quantizations x tasks x seeds with equal learning-rate trials, declared in one suite.yaml."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from peftlab.component import Settings
from peftlab.data import AnyData
from peftlab.errors import nearest
from peftlab.methods import AnyMethod, Method
from peftlab.models.model import AnyModel
from peftlab.quantization import AnyQuantization
from peftlab.recipe import Recipe
from peftlab.suites.placement import Placement
from peftlab.suites.sizes import Match, Size
from peftlab.tasks import AnyTask
from peftlab.training.settings import Seeds, Training

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,23}$")]  # three of them make a recipe's name
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, le=10)]


@dataclass(frozen=True)
class Row:
    """One combination of task, method and quantization: a row of the result table."""

    task: str
    method: str
    quantization: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-{self.quantization}"


class Trials(Settings):
    """How the learning rate of each method is chosen: by validation score, over a grid of equal size for all."""

    points: int = Field(3, ge=1, le=15)
    """Number of learning rates in the grid around a method's base rate. With 1, the base rate is used untried."""
    factor: float = Field(3.0, gt=1, le=100)
    """Ratio of neighboring learning rates in the grid."""
    extensions: int = Field(1, ge=0, le=4)
    """How many further rates are tried, one at a time, while the best rate is at the edge of the grid."""
    seed: Seed = 0
    """Seed of all trials; it is not one of the suite's `seeds`."""
    per_quantization: bool = False
    """Search over each quantization of a method. By default the rate found over the first one is used for all."""

    def rates(self, base_learning_rate: float) -> list[float]:
        """The grid in rising order, rounded to three digits. Rates that a recipe's limits make equal appear once.

        >>> Trials().rates(1.5e-3), Trials().rates(10.0)
        ([0.0005, 0.0015, 0.0045], [3.33, 10.0])
        """
        middle = (self.points - 1) / 2
        return list(
            dict.fromkeys(rounded_rate(base_learning_rate * self.factor ** (i - middle)) for i in range(self.points))
        )


def rounded_rate(rate: float) -> float:
    """The rate rounded to three digits and clamped to what a recipe allows.

    >>> rounded_rate(0.01 / 3), rounded_rate(25.0), rounded_rate(0.0) > 0
    (0.00333, 10.0, True)
    """
    return min(10.0, max(sys.float_info.min, float(f"{rate:.3g}"))) if math.isfinite(rate) else 10.0


class MethodSpec(Settings):
    """A method of a suite."""

    method: AnyMethod = Field(examples=[{"kind": "lora", "rank": 8}])
    """The method and its settings, as in a recipe."""
    learning_rate: Rate | None = Field(None, examples=[5e-4])
    """Center of the learning-rate grid. Default: the method's own learning rate."""
    quantizations: list[str] | None = Field(None, min_length=1, examples=[["none", "nf4"]])
    """Kinds of the quantizations to combine the method with. Default: all of the suite's."""
    match: bool = True
    """Resize this method where the suite has a `match`. False keeps its size."""

    @property
    def sized(self) -> bool:
        """True if `match` determines the method's size."""
        return self.match and self.method.size_setting is not None


class TaskSpec(Settings):
    """A task of a suite: the part of a recipe that is neither method nor quantization nor seed."""

    model: AnyModel | None = Field(None, examples=["sentence-transformers/all-MiniLM-L6-v2"])
    """Base model. Default: the suite's."""
    task: AnyTask | None = Field(None, examples=["token_classification"])
    """Task family and its settings. Default: the suite's."""
    data: AnyData | None = Field(None, examples=["eriktks/conll2003"])
    """Data of this task. Default: the suite's."""
    training: Training = Field(Training(), examples=[{"epochs": 5}])
    """Training settings of this task, which override the suite's key by key."""
    learning_rates: dict[str, Rate] = Field(default={}, examples=[{"lora": 1e-3}])
    """Centers of the learning-rate grids on this task, by method. They take precedence over the methods'."""


class Published(Settings):
    """A published result to compare a row with."""

    task: str | None = Field(examples=["ner"])
    """Name of a task of the suite; null for the mean over all tasks."""
    method: str = Field(examples=["lora"])
    """Name of a method of the suite."""
    quantization: str = "none"
    """Kind of the quantization."""
    value: float = Field(examples=[0.91])
    """The published score, in the unit of the metric."""
    tolerance: float = Field(gt=0, examples=[0.003])
    """Largest difference that counts as agreement: max(0.3 points, 1.96 combined standard errors)."""
    source: str = Field(examples=["A paper, table 1"])
    """Paper and table or page of the published score."""


class Suite(Settings):
    """A suite of comparable runs: the content of a suite.yaml."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", examples=["ner"])
    """Name of the suite. Default: the name of its folder."""
    description: str = Field("", examples=["Named entities of CoNLL-2003"])
    """One line about what the suite compares."""
    protocol: Literal["clean", "as-published"] = "clean"
    """"clean" reports the test score; "as-published" the best epoch's validation score, as some papers do."""
    reference: str = "full"
    """Name of the method that all others are tested against, without quantization."""
    margin: float = Field(0.01, gt=0)
    """Non-inferiority margin: a method within it is no worse than the reference. In the unit of the metric."""
    seeds: list[Seed] = Field(min_length=1, examples=[[1, 2, 3]])
    """One run per seed and row; the seed sets initialization, data order and dropout."""
    trials: Trials = Field(Trials(), examples=[{"points": 3}])
    """How learning rates are chosen."""
    match: Match | None = Field(None, examples=[{"parameters": 300_000}])
    """Resize the methods to an equal number of trainable parameters. Default: sizes as given."""
    time_limit: float | None = Field(None, gt=0, examples=[3600])
    """Seconds after which a run is stopped and recorded as "timed out". Default: no limit."""
    placement: Placement = Field(Placement(), examples=[{"processes": 2}])
    """Processes per run."""
    own_machine: bool = False
    """True if nothing else ran on the machine, so that times are comparable and appear in the table."""
    model: AnyModel | None = Field(None, examples=["sentence-transformers/all-MiniLM-L6-v2"])
    """Base model of the tasks that name none."""
    task: AnyTask | None = Field(None, examples=["token_classification"])
    """Task family of the tasks that name none."""
    data: AnyData | None = Field(None, examples=["eriktks/conll2003"])
    """Data of the tasks that name none."""
    training: Training = Field(Training(), examples=[{"epochs": 3}])
    """Training settings of all tasks."""
    tasks: dict[Name, TaskSpec] = Field(min_length=1, examples=[{"ner": {"data": "eriktks/conll2003"}}])
    """Tasks by name."""
    methods: dict[Name, MethodSpec] = Field(min_length=1, examples=[{"lora": {"method": "lora"}}])
    """Methods by name."""
    quantizations: list[AnyQuantization] = Field(min_length=1, examples=[["none", "nf4"]])
    """Quantizations of the base model; "none" is the unquantized one."""
    published: list[Published] = Field(
        default=[],
        examples=[[{"task": "ner", "method": "lora", "value": 0.91, "tolerance": 0.003, "source": "A paper, table 1"}]],
    )
    """Published results to compare with."""
    _sizes: list[Size] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Suite:
        kinds = [quantization.kind for quantization in self.quantizations]
        _require_distinct("seeds", self.seeds)
        _require_distinct("quantizations", kinds)
        self._check_names(kinds)
        for name, task in self.tasks.items():
            for key in ("model", "task", "data"):
                if getattr(task, key) is None and getattr(self, key) is None:
                    raise ValueError(f"tasks.{name}: has no {key}, nor has the suite")
        if self.placement.processes > 1 and any(
            training.auto_micro_batch for training in (self.training, *(task.training for task in self.tasks.values()))
        ):
            raise ValueError(
                "training.auto_micro_batch: not supported with several processes; set training.accumulation"
            )
        if self.protocol == "clean" and self.trials.points > 1 and self.trials.seed in self.seeds:
            raise ValueError(f"trials.seed: {self.trials.seed} is one of the suite's seeds; choose another one")
        return self

    def _check_names(self, kinds: Sequence[str]) -> None:
        """Raise ValueError if a name refers to no method, task or quantization."""
        _require_member("reference", self.reference, self.methods)
        for name, method in self.methods.items():
            for kind in method.quantizations or []:
                _require_member(f"methods.{name}.quantizations", kind, kinds)
        for name, task in self.tasks.items():
            for method_name in task.learning_rates:
                _require_member(f"tasks.{name}.learning_rates", method_name, self.methods)
        for row in self.published:
            _require_member("published", row.method, self.methods)
            _require_member("published", row.quantization, self.methods[row.method].quantizations or kinds)
            if row.task is not None:
                _require_member("published", row.task, self.tasks)

    @property
    def split(self) -> str:
        """The split whose score is reported."""
        return "test" if self.protocol == "clean" else "validation"

    def rows(self) -> Iterator[Row]:
        """Every combination, in the order of the file."""
        for task in self.tasks:
            for method, spec in self.methods.items():
                for quantization in self.quantizations:
                    if spec.quantizations is None or quantization.kind in spec.quantizations:
                        yield Row(task, method, quantization.kind)

    def recipe(self, row: Row, *, learning_rate: float, seed: int, trial: bool) -> Recipe:
        """The recipe of one run."""
        spec = self.tasks[row.task]
        of_task = {key: getattr(spec.training, key) for key in spec.training.model_fields_set}
        of_suite = {key: getattr(self.training, key) for key in self.training.model_fields_set}
        model, task, data = spec.model or self.model, spec.task or self.task, spec.data or self.data
        assert model is not None, "validated"
        assert task is not None, "validated"
        assert data is not None, "validated"
        return Recipe(
            name=row.name,
            model=model,
            task=task,
            data=data,
            method=self.method(row.task, row.method),
            quantization=next(each for each in self.quantizations if each.kind == row.quantization),
            training=Training(**{**of_suite, **of_task, "learning_rate": learning_rate}),
            seeds=Seeds(initialization=seed, data_order=seed, dropout=seed),
            score_test=self.protocol == "clean" and not trial,
        )

    def example(self, row: Row) -> Recipe:
        """A recipe of the row, with the base learning rate and the first seed."""
        return self.recipe(row, learning_rate=self.base_learning_rate(row), seed=self.seeds[0], trial=False)

    def method(self, task: str, name: str) -> Method:
        """The method as configured, or in the size that `match` determined for the task."""
        method = self.methods[name].method
        match = next((size for size in self._sizes if (size.task, size.method) == (task, name)), None)
        return method if match is None else method.resized(match.size)

    def sizes(self, task: str | None = None) -> list[Size]:
        """The sizes that `match` determined, of one task or of all."""
        return [size for size in self._sizes if task in (None, size.task)]

    def use_sizes(self, sizes: Sequence[Size]) -> None:
        """Add sizes that were found for `match`."""
        self._sizes.extend(sizes)

    def unmatched(self) -> list[tuple[str, str]]:
        """Pairs of task and method whose size `match` has yet to determine."""
        if self.match is None:
            return []
        determined = {(size.task, size.method) for size in self._sizes}
        pairs = dict.fromkeys((row.task, row.method) for row in self.rows())
        return [pair for pair in pairs if pair not in determined and self.methods[pair[1]].sized]

    def base_learning_rate(self, row: Row) -> float:
        """The center of a row's learning-rate grid."""
        spec = self.methods[row.method]
        of_method = spec.method.learning_rate if spec.learning_rate is None else spec.learning_rate
        return self.tasks[row.task].learning_rates.get(row.method, of_method)


def _require_distinct(key: str, values: Sequence[Any]) -> None:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{key}: {repeated[0]} is listed twice")


def _require_member(key: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise ValueError(f"{key}: {name!r} is none of {', '.join(names)}{nearest(name, names)}")
