"""The suite: methods x quantisations x tasks x seeds under one budget, as a folder's suite.yaml declares them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from peftlab.component import Settings
from peftlab.data import AnyData
from peftlab.errors import UserError, nearest
from peftlab.methods import AnyMethod, Method
from peftlab.models.model import AnyModel
from peftlab.quantization import AnyQuantization, Quantization
from peftlab.recipe import Recipe, bad_input
from peftlab.recipe.yaml_reader import Document, read_yaml
from peftlab.suites.placement import Placement
from peftlab.suites.sizes import Match, Size, read_sizes
from peftlab.tasks import AnyTask
from peftlab.training.settings import Seeds, Training

FILE = "suite.yaml"
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,23}$")]  # three of them make a recipe's name
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, le=10)]


class Trials(Settings):
    """How a method's learning rate is chosen: on validation, with as many trials for each method."""

    points: int = Field(3, ge=1, le=15)  # rates around the method's base rate; with 1 nothing is chosen
    factor: float = Field(3.0, gt=1, le=100)  # from one rate to the next
    extensions: int = Field(1, ge=0, le=4)  # further rates, one at a time, as long as the best is at the edge
    seed: Seed = 0
    per_quantization: bool = False  # or else over the method's first quantisation, for all of them

    def rates(self, base_learning_rate: float) -> list[float]:
        """The grid, rising, to three digits, each rate once: at the ends of what a recipe allows some are the same.

        >>> Trials().rates(1.5e-3), Trials().rates(10.0)
        ([0.0005, 0.0015, 0.0045], [3.33, 10.0])
        """
        middle = (self.points - 1) / 2
        return list(
            dict.fromkeys(_rounded(base_learning_rate * self.factor ** (i - middle)) for i in range(self.points))
        )


class MethodSpec(Settings):
    """A method of the suite."""

    method: AnyMethod
    learning_rate: Rate | None = None  # the grid's center; the method's own if not given
    quantizations: list[str] | None = Field(None, min_length=1)  # kinds; all of the suite's if not given
    match: bool = True  # false: stays as it is where the others are matched

    @property
    def sized(self) -> bool:
        """Whether `match` is to find its size."""
        return self.match and self.method.size_setting is not None


class TaskSpec(Settings):
    """A task of the suite: what a recipe says beside method, quantisation and seeds."""

    model: AnyModel | None = None  # the suite's if not given, as the next two
    task: AnyTask | None = None
    data: AnyData | None = None
    training: Training = Training()  # the suite's, but for what is given here
    learning_rates: dict[str, Rate] = Field(default={})  # centres for this task, by method


class Published(Settings):
    """A paper's row, to stand beside ours."""

    task: str | None  # null: the mean over the suite's tasks
    method: str
    quantization: str = "none"
    value: float  # in the metric's own unit
    tolerance: float = Field(gt=0)  # max(0.3 points, 1.96 combined standard errors)
    source: str


class Suite(Settings):
    """What suite.yaml says."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")  # the folder's
    description: str = ""
    protocol: Literal["clean", "as-published"] = "clean"  # as-published: the best epoch's score on validation
    reference: str = "full"  # the method that the others are tested against, unquantised
    margin: float = Field(0.01, gt=0)  # of "no worse than the reference", in the metric's unit
    seeds: list[Seed] = Field(min_length=1)
    trials: Trials = Trials()
    match: Match | None = None  # methods brought to the same number of parameters, as far as they have a size
    time_limit: float | None = Field(None, gt=0)  # seconds a run
    placement: Placement = Placement()  # of each run
    own_machine: bool = False  # the runs had their machine to themselves: their times may be shown
    model: AnyModel | None = None
    task: AnyTask | None = None
    data: AnyData | None = None
    training: Training = Training()
    tasks: dict[Name, TaskSpec] = Field(min_length=1)
    methods: dict[Name, MethodSpec] = Field(min_length=1)
    quantizations: list[AnyQuantization] = Field(min_length=1)
    published: list[Published] = Field(default=[])
    _sizes: list[Size] = PrivateAttr(default_factory=list)  # found for `match`

    @model_validator(mode="after")
    def _names_that_exist(self) -> Suite:
        kinds = [quantization.kind for quantization in self.quantizations]
        named: list[tuple[list[Any], str]] = [(self.seeds, "seeds"), (kinds, "quantizations")]
        for values, what in named:
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{what}: {twice[0]} stands twice")
        _known("reference", self.reference, self.methods)
        for name, entry in self.methods.items():
            for kind in entry.quantizations or []:
                _known(f"methods.{name}.quantizations", kind, kinds)
        for name, setup in self.tasks.items():
            for method in setup.learning_rates:
                _known(f"tasks.{name}.learning_rates", method, self.methods)
            for key in ("model", "task", "data"):
                if getattr(setup, key) is None and getattr(self, key) is None:
                    raise ValueError(f"tasks.{name}: has no {key}, nor has the suite")
        for row in self.published:
            _known("published", row.method, self.methods)
            _known("published", row.quantization, self.methods[row.method].quantizations or kinds)
            if row.task is not None:
                _known("published", row.task, self.tasks)
        if self.placement.processes > 1 and any(
            training.auto_micro_batch
            for training in (self.training, *(setup.training for setup in self.tasks.values()))
        ):
            raise ValueError("training.auto_micro_batch: runs in several processes cannot; set training.accumulation")
        if self.protocol == "clean" and self.trials.points > 1 and self.trials.seed in self.seeds:
            raise ValueError(f"trials.seed: {self.trials.seed} is one of the cells' seeds; choose with another one")
        return self

    @property
    def split(self) -> str:
        """The split whose score is the result."""
        return "test" if self.protocol == "clean" else "validation"

    def rows(self) -> Iterator[Row]:
        """Every combination, in the order of the file."""
        for task in self.tasks:
            for method, entry in self.methods.items():
                for quantization in self.quantizations:
                    if entry.quantizations is None or quantization.kind in entry.quantizations:
                        yield Row(task, method, quantization.kind)

    def recipe(self, row: Row, *, learning_rate: float, seed: int, trial: bool) -> Recipe:
        """One run."""
        setup = self.tasks[row.task]
        given = {key: getattr(setup.training, key) for key in setup.training.model_fields_set}
        shared = {key: getattr(self.training, key) for key in self.training.model_fields_set}
        model, task, data = setup.model or self.model, setup.task or self.task, setup.data or self.data
        assert model is not None, "validated"
        assert task is not None, "validated"
        assert data is not None, "validated"
        return Recipe(
            name=row.name,
            model=model,
            task=task,
            data=data,
            method=self.method(row.task, row.method),
            quantization=self._quantization(row.quantization),
            training=Training(**{**shared, **given, "learning_rate": learning_rate}),
            seeds=Seeds(initialization=seed, data_order=seed, dropout=seed),
            score_test=self.protocol == "clean" and not trial,
        )

    def method(self, task: str, name: str) -> Method:
        """As the file says, or in the size that matches."""
        method = self.methods[name].method
        found = next((size for size in self._sizes if (size.task, size.method) == (task, name)), None)
        return method if found is None else method.resized(found.size)

    def sizes(self, task: str | None = None) -> list[Size]:
        """What was found for `match`."""
        return [size for size in self._sizes if task in (None, size.task)]

    def unmatched(self) -> list[tuple[str, str]]:
        """Tasks and methods whose size `match` leaves open."""
        if self.match is None:
            return []
        found = {(size.task, size.method) for size in self._sizes}
        rows = dict.fromkeys((row.task, row.method) for row in self.rows())
        return [pair for pair in rows if pair not in found and self.methods[pair[1]].sized]

    def base_learning_rate(self, row: Row) -> float:
        """The middle of a combination's learning rates."""
        entry = self.methods[row.method]
        of_method = entry.method.learning_rate if entry.learning_rate is None else entry.learning_rate
        return self.tasks[row.task].learning_rates.get(row.method, of_method)

    def _quantization(self, kind: str) -> Quantization:
        return next(quantization for quantization in self.quantizations if quantization.kind == kind)


@dataclass(frozen=True)
class Row:
    """A combination: what a line of the table is about."""

    task: str
    method: str
    quantization: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-{self.quantization}"


Scores = Mapping[str, float | None]  # on validation by digest, larger is better; None if a run ended without one


@dataclass(frozen=True)
class Search:
    """The trials of one combination."""

    row: Row
    trials: list[Recipe]  # by rising rate, extensions too
    scores: list[float | None]  # of the same, larger is better; None where there is none, or none yet
    missing: list[Recipe]  # trials that have not ended
    rate: float | None  # the best; None as long as trials are missing, or if none of them has a score
    extended: bool  # the best was at the edge of the grid
    at_edge: bool  # and after the extensions still is

    @property
    def all_trials_failed(self) -> bool:
        """All trials have ended, none with a score: there will be no runs."""
        return bool(self.trials) and not self.missing and self.rate is None


@dataclass(frozen=True)
class Plan:
    """What there is to run, as far as it can be told from what has run."""

    searches: dict[Row, Search]
    chosen_over: dict[Row, Row]  # by combination the one whose trials choose its learning rate
    cells: dict[Row, list[Recipe]]  # by seed; empty as long as the learning rate is open
    refused: dict[Row, str]  # combinations that validation refuses, and why

    @property
    def recipes(self) -> list[Recipe]:
        """All runs known, trials first, and then seed by seed: what is there early is a whole table with few seeds."""
        trials = [trial for search in self.searches.values() for trial in search.trials]
        longest = max((len(cells) for cells in self.cells.values()), default=0)
        return trials + [cells[i] for i in range(longest) for cells in self.cells.values() if i < len(cells)]


def suite_file(path: Path) -> Path:
    """That of a suite's folder, or the file itself. Raises UserError if there is none."""
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        near = nearest(path.name, (other.parent.name for other in path.parent.glob(f"*/{FILE}")))
        raise UserError(f"{path}: no such suite{near}; a folder with a {FILE} was expected")
    return file


def load_suite(path: Path, *, matched: bool = True) -> Suite:
    """Read and check a suite: its folder, or the file. Raises UserError, one line a mistake.

    Unless sizes may still be open, its methods must be `matched` if it asks for it.
    """
    file = suite_file(path)
    document = read_yaml(file)
    values = {"name": file.resolve().parent.name, **document.values}
    try:
        suite = Suite.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise bad_input(error, Suite, file, Document(values, document.lines)) from None
    for row in suite.rows():
        try:
            suite.recipe(row, learning_rate=suite.base_learning_rate(row), seed=suite.seeds[0], trial=False)
        except ValidationError as error:
            line = document.lines.get(("tasks", row.task), 1)
            raise UserError(f"{file}:{line}: tasks.{row.task}: with {row.method}: {error.errors()[0]['msg']}") from None
    if suite.match is not None:
        suite._sizes.extend(size for size in read_sizes(file.parent) if _still_fits(suite, size))
        if matched and suite.unmatched():
            raise UserError(f"{file}: match: sizes are still to be found: peftlab bench {path} --dry-run finds them")
    return suite


def _still_fits(suite: Suite, size: Size) -> bool:
    """Whether it was found for what the suite says now."""
    row = next((row for row in suite.rows() if (row.task, row.method) == (size.task, size.method)), None)
    if row is None or not suite.methods[size.method].sized:
        return False
    if suite.match is None or size.wanted != suite.match.parameters:
        return False
    recipe = suite.recipe(row, learning_rate=suite.base_learning_rate(row), seed=suite.seeds[0], trial=False)
    try:
        recipe.method.resized(size.size)
    except ValidationError:  # edited by hand
        return False
    return (size.base, size.settings) == (recipe.model.model_dump(mode="json"), recipe.method.model_dump(mode="json"))


def make_plan(suite: Suite, scores: Scores) -> Plan:
    """What is to be run, given the validation scores of what has been."""
    searches: dict[Row, Search] = {}
    chosen_over: dict[Row, Row] = {}
    cells: dict[Row, list[Recipe]] = {}
    refused: dict[Row, str] = {}
    for row in suite.rows():
        example = suite.recipe(row, learning_rate=suite.base_learning_rate(row), seed=suite.seeds[0], trial=False)
        reason = example.incompatible_with(example.model.known_architecture(), sharded=suite.placement.sharded)
        if reason is not None:
            refused[row] = reason
            continue
        kin = (other for other in searches if (other.task, other.method) == (row.task, row.method))
        over = chosen_over[row] = row if suite.trials.per_quantization else next(kin, row)
        if over not in searches:
            searches[over] = _search(suite, over, scores)
        rate = searches[over].rate
        cells[row] = [
            suite.recipe(row, learning_rate=rate, seed=seed, trial=False)
            for seed in (suite.seeds if rate is not None else [])
            if rate is not None
        ]
    return Plan(searches, chosen_over, cells, refused)


def _search(suite: Suite, row: Row, scores: Scores) -> Search:
    trials, factor = suite.trials, suite.trials.factor
    rates = trials.rates(suite.base_learning_rate(row))
    if len(rates) == 1:
        return Search(row, [], [], [], rates[0], extended=False, at_edge=False)
    found: dict[float, float | None] = {}
    extensions = 0
    while True:
        recipes = {rate: suite.recipe(row, learning_rate=rate, seed=trials.seed, trial=True) for rate in rates}
        missing = [recipe for recipe in recipes.values() if recipe.digest not in scores]
        found = {rate: scores.get(recipe.digest) for rate, recipe in recipes.items()}
        best = _best(found) if not missing else None
        at_edge = best is not None and best in (min(rates), max(rates))
        if not at_edge or extensions == trials.extensions:
            break
        assert best is not None
        beyond = _rounded(best / factor if best == min(rates) else best * factor)
        if beyond in rates:
            break
        extensions += 1
        rates.append(beyond)
    order = sorted(rates)
    return Search(
        row,
        [recipes[rate] for rate in order],
        [found[rate] for rate in order],
        missing,
        best,
        extended=extensions > 0,
        at_edge=at_edge,
    )


def _best(found: Mapping[float, float | None]) -> float | None:
    """The rate that scored best; of equals the one tried first."""
    scored = {rate: score for rate, score in found.items() if score is not None}
    return max(scored, key=lambda rate: scored[rate]) if scored else None


def _rounded(rate: float) -> float:
    """To three digits, and never outside of what a recipe allows.

    >>> _rounded(0.01 / 3), _rounded(25.0), _rounded(0.0) > 0
    (0.00333, 10.0, True)
    """
    return min(10.0, max(sys.float_info.min, float(f"{rate:.3g}"))) if math.isfinite(rate) else 10.0


def _known(where: str, name: str, names: Any) -> None:
    if name not in names:
        raise ValueError(f"{where}: {name!r} is none of {', '.join(names)}{nearest(name, names)}")
