"""Suites with simulated results."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from peftlab.statistics import aggregates
from peftlab.suites.plan import make_plan
from peftlab.suites.profiles import ProfileRecord, ProfileStore
from peftlab.suites.store import Predictions, Record, ScoreStatistics, Store, validation_scores
from peftlab.suites.suite import Row
from peftlab.suites.suite_file import load_suite
from tests.reports.example_suite import SUITE, counts, profile, result


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites") / "example"
    folder.mkdir()
    (folder / "suite.yaml").write_text(SUITE)
    store, suite = Store(folder), load_suite(folder)
    while True:
        records = store.records()
        new = [r for r in make_plan(suite, validation_scores(records)).recipes if r.digest not in records]
        if not new:
            return folder
        for recipe in new:
            if recipe.method.kind == "bitfit" and recipe.seeds.initialization == 3:
                record = Record(state="diverged", reason="the loss is nan", recipe=recipe.model_dump(mode="json"))
                store.write(recipe, record, None)
                continue
            rows = counts(recipe)
            score = float(aggregates.f1(np.array(rows).sum(axis=0)))
            if not recipe.score_test:  # the middle of the grid is best
                score -= abs(np.log(recipe.learning_rate / suite.methods[recipe.method.kind].learning_rate or 1)) / 10
            counted = [ScoreStatistics(score="entity_f1", aggregate="f1", rows=rows)]
            splits = ("validation", "test") if recipe.score_test else ("validation",)
            predictions = Predictions(columns={}, statistics=dict.fromkeys(splits, counted))
            store.write(recipe, Record(state="done", result=result(recipe, score)), predictions)


@pytest.fixture(scope="session")
def profiled_folder(suite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite with profiles of full fine-tuning and LoRA; profiling BitFit failed."""
    folder = Path(shutil.copytree(suite_folder, tmp_path_factory.mktemp("profiled") / "example"))
    suite = load_suite(folder)
    for method, kind, peak, seconds, merged in (
        ("full", "none", 100, 0.5, None), ("lora", "none", 60, 0.3, 0.2), ("lora", "nf4", 59, 0.4, None),
        ("bitfit", "none", None, 0.0, None),
    ):  # fmt: skip
        recipe = suite.recipe(Row("addresses", method, kind), learning_rate=0.123, seed=7, trial=True)
        values = {"recipe": recipe.model_dump(mode="json"), "state": "failed", "reason": "no such layer"}
        if peak is not None:
            measured = profile(recipe, peak=peak, seconds=seconds, merged=merged)
            values |= {"state": "done", "reason": None, "profile": measured}
        ProfileStore(folder).write(recipe, ProfileRecord(**values))
    return folder
