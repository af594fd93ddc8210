"""Analysis of a suite: every number comes from its results, and what cannot be compared is rejected."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import UserError
from peftlab.reports.analysis import analyze, read_analysis
from peftlab.reports.columns import difference
from peftlab.reports.environments import describe_environment
from peftlab.results.run_result import Environment
from peftlab.statistics import aggregates
from peftlab.suites.eta import EtaEstimator
from peftlab.suites.plan import make_plan
from peftlab.suites.store import Store, validation_scores
from peftlab.suites.suite import Row
from peftlab.suites.suite_file import load_suite
from peftlab.tasks.token_classification import TokenClassification
from tests.reports.example_suite import SUITE, changed, markdown_of, row_of

LORA = "addresses-lora-none"


@pytest.mark.parametrize("key", ["data_fingerprint", "model_fingerprint"])
def test_results_with_different_data_or_models_are_rejected(suite_folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"its (data|model) differs from that of .* cannot be compared"):
        read_analysis(changed(suite_folder, tmp_path, {key: "0" * 64}))


def test_a_score_that_the_stored_predictions_do_not_give_is_rejected(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"metrics.test.entity_f1": 0.99})
    with pytest.raises(UserError, match=r"entity_f1 is 0.99, but its stored predictions give 0.8"):
        read_analysis(copy)


def test_a_suite_without_results_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.partition("published:")[0] + "name: mine\n")
    with pytest.raises(UserError, match="no results yet; `peftlab bench"):
        read_analysis(tmp_path)


def test_damaged_predictions_are_a_one_line_error(suite_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "example"))
    path = next((copy / "results").glob(f"{LORA}-seed1-*.json.gz"))
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"\.gz: (cannot be read|not predictions)"):
        read_analysis(copy)


def test_a_row_with_one_seed_has_a_score_but_no_test(suite_folder: Path) -> None:
    suite, records = load_suite(suite_folder), Store(suite_folder).records()
    few = {d: s for d, s in records.items() if s.recipe.method.kind != "lora" or s.recipe.seeds.initialization < 2}
    row = row_of(analyze(suite, few), LORA)
    assert row.score is not None
    assert (row.score.n, row.score.std, row.comparison, row.tied_for_best) == (1, None, None, False)
    assert "A row with n = 1 describes one trained model" in markdown_of(analyze(suite, few))
    assert "two-level t test" in markdown_of(analyze(suite, records))


def test_for_a_metric_where_lower_is_better_the_lowest_trial_wins(
    suite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, records = load_suite(suite_folder), Store(suite_folder).records()
    combination = Row("addresses", "lora", "none")
    assert len(make_plan(suite, validation_scores(records)).searches[combination].trials) == 3  # best in the middle
    monkeypatch.setattr(TokenClassification, "lower_is_better", True)
    assert len(make_plan(suite, validation_scores(records)).searches[combination].trials) == 4  # best at an edge


def test_intervals_are_clipped_to_the_range_of_the_metric(suite_folder: Path) -> None:
    """With two seeds Student's t interval is wide, and no F1 is below 0 or above 1."""
    rows = read_analysis(suite_folder).rows
    row = next(row for row in rows if row.comparison is not None and row.estimate is not None)
    assert row.estimate is not None
    assert row.comparison is not None
    wide = replace(row, estimate=replace(row.estimate, seed_variance=1.0, seed_degrees=1.0))
    assert wide.estimate is not None
    assert wide.estimate.interval()[0] < -1
    assert wide.interval == (0.0, 1.0)
    uncertain = replace(row.comparison.difference, seed_variance=1.0, seed_degrees=1.0)
    wide = replace(row, comparison=replace(row.comparison, difference=uncertain))
    assert wide.difference_interval == (-1.0, 1.0)
    assert aggregates.RANGES.keys() == aggregates.AGGREGATES.keys()
    assert "-1.0000 to +1.0000" in difference(wide)
    assert row.interval == row.estimate.interval()


def test_a_method_whose_trials_all_failed_gives_the_reason_and_has_no_missing_runs(
    suite_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "example"))
    for path in (copy / "results").glob("addresses-full-none-*.json"):
        if "rate" not in path.name:
            path.unlink()
            continue
        values = json.loads(path.read_text())
        failure = {"state": "out of memory", "reason": "40 GiB more were needed", "recipe": values["result"]["recipe"]}
        path.write_text(json.dumps({**values, **failure, "result": None}))
    text = markdown_of(read_analysis(copy))
    assert "no learning rate gave a score: out of memory: 40 GiB more were needed" in text
    assert "runs are missing" not in text
    suite, records = load_suite(copy), Store(copy).records()
    estimator = EtaEstimator(suite, make_plan(suite, validation_scores(records)), records)
    assert estimator.ended == estimator.total


def test_with_a_single_test_example_there_is_a_score_and_no_interval(suite_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "example"))
    for path in (copy / "results").glob("*.predictions.json.gz"):
        values = json.loads(gzip.decompress(path.read_bytes()))
        for split in values["statistics"].values():
            split[0]["rows"] = split[0]["rows"][:1]
        path.write_bytes(gzip.compress(json.dumps(values).encode()))
    row = row_of(read_analysis(copy), LORA)
    assert row.score is not None
    assert row.interval is None


def test_without_variance_there_is_no_interval(suite_folder: Path) -> None:
    """An F1 of 0 in every run and resample: an interval from 0 to 0 would be certainty."""
    row = read_analysis(suite_folder).rows[2]
    assert row.estimate is not None
    constant = replace(row, estimate=replace(row.estimate, seed_variance=0.0, example_variance=0.0))
    assert constant.interval is None


def test_the_reference_is_the_unquantized_row_at_any_position(suite_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "example"))
    text = SUITE.replace("quantizations: [none, nf4]", "quantizations: [nf4, none]")
    (copy / "suite.yaml").write_text(text + "reference: lora\n")
    reference = read_analysis(copy).reference("addresses")
    assert reference is not None
    assert reference.combination.quantization == "none"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_published_row_must_be_a_combination_of_the_suite(quantization: str, tmp_path: Path) -> None:
    row = f"{{task: addresses, method: bitfit, quantization: {quantization}, value: 0.8, tolerance: 0.1, source: A}}"
    (tmp_path / "suite.yaml").write_text(f"{SUITE}  - {row}\n")
    with pytest.raises(UserError, match=f"published: .*{quantization}"):
        load_suite(tmp_path)


@pytest.mark.parametrize("case", ["one answer", "equal to the baseline", "above the baseline"])
def test_degenerate_runs_are_noted(suite_folder: Path, tmp_path: Path, case: str) -> None:
    (score,) = [
        stored.record.result.metrics["test"]["entity_f1"]
        for stored in Store(suite_folder).records().values()
        if stored.record.result is not None and stored.path.name.startswith(f"{LORA}-seed1-")
    ]
    baseline = {"one answer": 0.1, "equal to the baseline": score, "above the baseline": score - 1e-3}[case]
    copy = changed(suite_folder, tmp_path, {"constant_baseline": {"test": {"entity_f1": baseline}}})
    if case == "one answer":
        path = next((copy / "results").glob(f"{LORA}-seed1-*.json.gz"))
        values = json.loads(gzip.decompress(path.read_bytes()))
        values["columns"] = {"test": {"predicted": [["O", "O"]] * 200}}
        path.write_bytes(gzip.compress(json.dumps(values).encode()))
    text = markdown_of(read_analysis(copy))
    assert f"or the mean of train for every example, scores {baseline:.4f}." in text
    assert ("1 of 4 runs are degenerate" in text) == (case != "above the baseline")


@pytest.mark.parametrize(
    ("placement", "ending"),
    [
        ({}, "4 threads, float32"),
        ({"processes": 2}, "2 processes, float32"),
        ({"processes": 2, "zero": 2}, "2 processes under ZeRO-2, float32"),
        ({"processes": 2, "zero": 3, "sharded": True}, "under ZeRO-3 with a shard of the model each, float32"),
        ({"device_map": "auto"}, "layers on several GPUs (auto), float32"),
    ],
)
def test_every_placement_is_a_different_environment(placement: dict[str, Any], ending: str) -> None:
    hardware = {"processor": "P", "cores": 4, "threads": 4, "memory_bytes": 1, "accelerators": [], "driver": None}
    environment = Environment.model_validate(
        {"code": {"commit": None, "modified": None}, "python": "3", "libraries": {}, "hardware": hardware}
        | {"device": "cpu", "precision": "float32", "processes": 1, **placement}
    )
    assert describe_environment(environment).endswith(ending)
