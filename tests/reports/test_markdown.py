"""A suite's tables and figures: every number is the results' own, marked where it must be, the same each time."""

import csv
import gzip
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.errors import UserError
from peftlab.reports import text
from peftlab.reports.analysis import Analysis, Line, _ground, analyze
from peftlab.reports.columns import difference
from peftlab.reports.figures import write_figures
from peftlab.reports.markdown import markdown, read_analysis, tables
from peftlab.results.run_result import Environment
from peftlab.statistics import aggregates
from peftlab.suites.eta import EtaEstimator
from peftlab.suites.plan import make_plan
from peftlab.suites.store import Store, validation_scores
from peftlab.suites.suite import Row
from peftlab.suites.suite_file import load_suite
from peftlab.tasks.token_classification import TokenClassification
from tests.reports.made_up import SUITE, changed, table_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_row_is_mean_deviation_interval_difference_and_tests_of_its_runs(suite_folder: Path) -> None:
    rows = table_rows(markdown(read_analysis(suite_folder)))
    runs = [s.record.result for s in Store(suite_folder).records().values() if s.recipe.name == "addresses-lora-none"]
    scores = [run.metrics["test"]["entity_f1"] for run in runs if run is not None and "test" in run.metrics]
    assert len(scores) == 4
    trainable, share, saved, n, score, interval, difference, p, no_worse = rows["LoRA", "unquantised"]
    assert (trainable, share, saved, n) == ("1,010", "1.00 %", "4.0 KiB", "4")
    assert score == f"**{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}**"
    assert float(interval.split(" to ")[0]) < np.mean(scores) < float(interval.split(" to ")[1])
    assert float(p) > 0.05
    assert no_worse == "< 0.001" or float(no_worse) < 0.05
    full = rows["full fine-tuning", "unquantised"]
    assert full[6:] == ["–"] * 3  # the reference is compared with nothing
    gap = np.mean(scores) - float(full[4].strip("*").split()[0])
    assert float(difference.split()[0]) == pytest.approx(gap, abs=1.1e-4)


def test_a_worse_method_is_not_bold_and_its_diverged_run_is_counted_and_told(suite_folder: Path) -> None:
    text = markdown(read_analysis(suite_folder))
    row = table_rows(text)["BitFit", "unquantised"]
    assert row[3] == "3 of 4, 1 diverged"
    assert not row[4].startswith("**")
    assert row[7] == "< 0.001" or float(row[7]) < 0.05
    assert "1 of 4 runs diverged: the loss is nan" in text


def test_what_was_not_run_is_a_dash_with_its_reason(suite_folder: Path) -> None:
    text = markdown(read_analysis(suite_folder))
    assert table_rows(text)["full fine-tuning", "NF4"] == ["–"] * 9
    assert "unsupported: full fine-tuning changes the base's weights" in text


def test_times_are_shown_only_of_a_machine_that_did_nothing_else(suite_folder: Path, tmp_path: Path) -> None:
    assert "7,777" not in markdown(read_analysis(suite_folder))
    alone = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    (alone / "suite.yaml").write_text(SUITE + "own_machine: true\n")
    assert "7,777" in markdown(read_analysis(alone))


def test_all_trials_are_shown_and_the_chosen_one_is_bold(suite_folder: Path) -> None:
    text = markdown(read_analysis(suite_folder)).split("### Learning rates")[1]
    assert re.search(r"\| LoRA \| unquantised \| 0\.000333: 0\.\d+, \*\*0\.001: 0\.\d+\*\*, 0\.003: 0\.\d+ \|", text)


@pytest.mark.parametrize("key", ["data_fingerprint", "model_fingerprint"])
def test_results_of_other_data_or_models_are_refused(suite_folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"of other (data|models) than .*: not to be compared"):
        read_analysis(changed(suite_folder, tmp_path, {key: "0" * 64}))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("environment.code.commit", "d" * 40, "peftlab ddddddd"),
        ("environment.hardware.threads", 2, "p, 2 threads"),
        ("environment.hardware.processor", "another", "another, 1 thread"),
        ("environment.libraries", {"torch": "2.14.0"}, "torch 2.14.0"),
    ],
)
def test_results_of_other_code_or_hardware_are_marked(
    suite_folder: Path, tmp_path: Path, key: str, value: object, says: str
) -> None:
    text = markdown(read_analysis(changed(suite_folder, tmp_path, {key: value})))
    (note,) = re.findall(r"- (\w): some of its runs or trials on other ground: (.*)", text)
    assert says in note[1]
    assert f"| LoRA [{note[0]}] | unquantised |" in text
    assert "| full fine-tuning | unquantised |" in text


def test_a_score_that_its_counts_do_not_give_is_refused(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"metrics.test.entity_f1": 0.99})
    with pytest.raises(UserError, match=r"entity_f1 is 0.99, but by its predictions' counts 0.8"):
        read_analysis(copy)


def test_csv_holds_every_combination_unrounded(suite_folder: Path) -> None:
    findings = read_analysis(suite_folder)
    rows = list(csv.DictReader(io.StringIO(tables(findings)["table.csv"])))
    assert [(row["method"], row["quantization"]) for row in rows] == [
        ("full", "none"), ("full", "nf4"), ("lora", "none"), ("lora", "nf4"), ("bitfit", "none")
    ]  # fmt: skip
    lora = findings.lines[2]
    assert lora.score is not None
    assert float(rows[2]["mean"]) == pytest.approx(lora.score.mean, rel=1e-9)
    assert rows[1]["mean"] == ""


def test_rendering_twice_gives_the_same_bytes(suite_folder: Path, tmp_path: Path) -> None:
    first, second = read_analysis(suite_folder), read_analysis(suite_folder)
    assert tables(first) == tables(second)
    names = [path.name for path in write_figures(first, tmp_path / "one")]
    write_figures(second, tmp_path / "two")
    assert {name.split(".")[0] for name in names} == {
        "addresses-parameters", "addresses-learning-rates", "addresses-trials", "addresses-learning-curves"
    }  # fmt: skip
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("folder", sorted(path.parent for path in BENCHMARKS.glob("*/table.md")), ids=lambda p: p.name)
def test_a_committed_table_is_what_its_results_give(folder: Path) -> None:
    for name, content in tables(read_analysis(folder)).items():
        assert (folder / name).read_text(encoding="utf-8") == content, name


def test_parameters_that_pruning_leaves_are_shown_where_a_method_says_so(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"method_stats": {"effective_parameters": 600}})
    files = tables(read_analysis(copy))
    rows = table_rows(files["table.md"].split("### Cost")[1], 2)  # a column of that table is called so too
    assert "| method | base | method | head | trainable at the end |" in files["table.md"]
    assert rows["LoRA", "unquantised"][:3] == ["1,000", "10", "610"]
    assert rows["BitFit", "unquantised"][:3] == ["1,000", "10", "–"]
    values = list(csv.DictReader(io.StringIO(files["table.csv"])))
    assert [row["trainable_parameters_at_the_end"] for row in values] == ["", "", "610", "", ""]
    assert "at the end" not in tables(read_analysis(suite_folder))["table.md"]


def test_a_suite_without_results_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.partition("published:")[0] + "name: mine\n")
    with pytest.raises(UserError, match="no results yet; `peftlab bench"):
        read_analysis(tmp_path)


def test_one_seed_is_told_apart_from_several(suite_folder: Path) -> None:
    """A line with a single seed beside others with three has a score, and no test that would need its spread."""
    suite, records = load_suite(suite_folder), Store(suite_folder).records()
    few = {d: s for d, s in records.items() if s.recipe.method.kind != "lora" or s.recipe.seeds.initialization < 2}
    line = next(line for line in analyze(suite, few).lines if line.row.name == "addresses-lora-none")
    assert line.score is not None
    assert (line.score.n, line.score.std, line.comparison, line.tied) == (1, None, None, False)
    assert "A line with n = 1 speaks of that one trained model" in markdown(analyze(suite, few))
    assert "two-level t test" in markdown(analyze(suite, records))


def test_where_less_is_better_the_least_wins_the_trials(suite_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, records = load_suite(suite_folder), Store(suite_folder).records()
    row = Row("addresses", "lora", "none")
    assert len(make_plan(suite, validation_scores(records)).searches[row].trials) == 3  # the middle scores most
    monkeypatch.setattr(TokenClassification, "lower_is_better", True)
    assert len(make_plan(suite, validation_scores(records)).searches[row].trials) == 4  # an edge wins: one more


def test_an_interval_ends_at_the_metrics_bounds(suite_folder: Path) -> None:
    """With two seeds Student's t reaches far, and an F1 below 0 or above 1 is none."""
    lines = read_analysis(suite_folder).lines
    line = next(line for line in lines if line.comparison is not None and line.estimate is not None)
    wide = replace(line, estimate=replace(line.estimate, seed_variance=1.0, seed_degrees=1.0))
    assert wide.estimate.interval()[0] < -1  # type: ignore[union-attr]
    assert wide.interval == (0.0, 1.0)
    far = replace(line.comparison.difference, seed_variance=1.0, seed_degrees=1.0)  # type: ignore[union-attr]
    wide = replace(line, comparison=replace(line.comparison, difference=far))
    assert wide.gap == (-1.0, 1.0)
    assert aggregates.RANGES.keys() == aggregates.AGGREGATES.keys()
    assert "-1.0000 to +1.0000" in difference(wide)
    assert line.interval == line.estimate.interval()  # type: ignore[union-attr]


def test_of_a_method_whose_trials_all_died_the_reason_is_said_and_no_run_is_to_come(
    suite_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    for path in (copy / "results").glob("addresses-full-none-*.json"):
        if "rate" not in path.name:
            path.unlink()
            continue
        values = json.loads(path.read_text())
        died = {"state": "out of memory", "reason": "40 GiB more were wanted", "recipe": values["result"]["recipe"]}
        path.write_text(json.dumps({**values, **died, "result": None}))
    text = markdown(read_analysis(copy))
    assert "none of its learning rates gave a score: out of memory: 40 GiB more were wanted" in text
    assert "still to come" not in text
    suite, records = load_suite(copy), Store(copy).records()
    clock = EtaEstimator(suite, make_plan(suite, validation_scores(records)), records)
    assert clock.ended == clock.total


def test_with_a_single_test_example_there_is_a_score_and_no_interval(suite_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    for path in (copy / "results").glob("*.predictions.json.gz"):
        values = json.loads(gzip.decompress(path.read_bytes()))
        for split in values["counts"].values():
            split[0]["rows"] = split[0]["rows"][:1]
        path.write_bytes(gzip.compress(json.dumps(values).encode()))
    line = next(line for line in read_analysis(copy).lines if line.row.name == "addresses-lora-none")
    assert line.score is not None
    assert line.interval is None


def test_predictions_that_a_disk_has_spoilt_are_one_line(suite_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    path = next((copy / "results").glob("addresses-lora-none-seed1-*.json.gz"))
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"\.gz: (cannot be read|not predictions)"):
        read_analysis(copy)


def test_what_was_lost_of_the_data_is_summed_over_the_splits(suite_folder: Path, tmp_path: Path) -> None:
    splits = {
        split: {"examples": count, "tokens": 9, "dropped": {"lost_words": count, "cut_sentences": 0}}
        for split, count in (("train", 20), ("validation", 3), ("test", 4))
    }
    copy = changed(suite_folder, tmp_path, {"splits": splits})
    findings = read_analysis(copy)
    (result,) = [
        stored.record.result
        for line in findings.lines
        for stored in line.ended
        if stored.record.result is not None and len(stored.record.result.splits) == 3
    ]
    assert text._sizes(result) == "20 train, 3 validation, 4 test examples (27 lost words)"


def test_the_reference_is_unquantised_wherever_it_stands(suite_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    text = SUITE.replace("quantizations: [none, nf4]", "quantizations: [nf4, none]")
    # As chosen over the first base: the rates are those that there are trials of.
    (copy / "suite.yaml").write_text(text.replace("reference: full", "") + "reference: lora\n")
    reference = read_analysis(copy).reference("addresses")
    assert reference is not None
    assert reference.row.quantization == "none"


@pytest.mark.parametrize("published", ["nf4", "int8"])
def test_a_published_row_must_be_one_of_the_suites(published: str, tmp_path: Path) -> None:
    row = f"  - {{task: addresses, method: bitfit, quantization: {published}, value: 0.8, tolerance: 0.1, source: A}}\n"
    (tmp_path / "suite.yaml").write_text(SUITE + row)
    with pytest.raises(UserError, match=f"published: '{published}' is none of none"):
        load_suite(tmp_path)


def with_spread(folder: Path, variance: float) -> Analysis:
    """The same findings, with seeds that differ by so much."""
    found = read_analysis(folder)

    def spread(line: Line) -> Line:
        if line.comparison is None:
            return line
        difference = replace(line.comparison.difference, seed_variance=variance, seed_degrees=1.0)
        return replace(line, comparison=replace(line.comparison, difference=difference))

    return replace(found, lines=[spread(line) for line in found.lines])


def test_no_difference_is_called_visible_that_the_metric_cannot_have(suite_folder: Path) -> None:
    """With two seeds the strictest test may want an F1 that is better by 15."""
    (steady,) = text._power(read_analysis(suite_folder), "addresses")
    assert all(float(number) < 0.4 for number in re.findall(r"difference of (0\.\d+) in .* of (0\.\d+) in", steady)[0])
    wide = with_spread(suite_folder, 1.0)
    assert text._power(wide, "addresses")[0].startswith("Power: none. There is no difference that")
    found = text._power(replace(wide, lines=[*wide.lines[:3], read_analysis(suite_folder).lines[4]]), "addresses")
    assert "in its steadiest line and none at all in its least steady one" in found[0]


def test_a_margin_that_the_table_cannot_show_is_called_too_narrow(suite_folder: Path, tmp_path: Path) -> None:
    assert "too narrow" not in markdown(read_analysis(suite_folder))  # 0.1
    copy = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    (copy / "suite.yaml").write_text(SUITE.replace("margin: 0.1", "margin: 0.001"))
    (needed,) = re.findall(r"from a margin of (\S+) on: 0.001 is too narrow", markdown(read_analysis(copy)))
    assert 0.001 < float(needed) < 0.1


def test_of_intervals_beside_adjusted_p_values_it_is_said_that_they_are_not(suite_folder: Path) -> None:
    assert "Intervals are not adjusted" in markdown(read_analysis(suite_folder))


def test_where_nothing_varies_there_is_no_interval(suite_folder: Path) -> None:
    """An F1 of 0 in each run and each draw: from 0 to 0 would be certainty."""
    findings = read_analysis(suite_folder)
    line = findings.lines[2]
    assert line.estimate is not None
    still = replace(line, estimate=replace(line.estimate, seed_variance=0.0, example_variance=0.0))
    assert still.interval is None
    said = "A line has no interval where"
    assert said in " ".join(text.judgement(replace(findings, lines=[*findings.lines, still]), "addresses"))
    assert said not in markdown(findings)


@pytest.mark.parametrize("how", ["one answer", "the floor", "nearly the floor"])
def test_runs_that_learnt_nothing_are_told(suite_folder: Path, tmp_path: Path, how: str) -> None:
    (score,) = [
        stored.record.result.metrics["test"]["entity_f1"]
        for stored in Store(suite_folder).records().values()
        if stored.record.result is not None and stored.path.name.startswith("addresses-lora-none-seed1-")
    ]
    floor = {"one answer": 0.1, "the floor": score, "nearly the floor": score - 1e-3}[how]
    copy = changed(suite_folder, tmp_path, {"constant_baseline": {"test": {"entity_f1": floor}}})
    if how == "one answer":
        path = next((copy / "results").glob("addresses-lora-none-seed1-*.json.gz"))
        values = json.loads(gzip.decompress(path.read_bytes()))
        values["kept"] = {"test": {"predicted": [["O", "O"]] * 200}}
        path.write_bytes(gzip.compress(json.dumps(values).encode()))
    text = markdown(read_analysis(copy))
    assert f"One answer for all examples, train's mean or most frequent, scores {floor:.4f}." in text
    assert ("1 of 4 runs learnt nothing" in text) == (how != "nearly the floor")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({}, "4 threads, float32"),
        ({"processes": 2}, "2 processes, float32"),
        ({"processes": 2, "zero": 2}, "2 processes under ZeRO-2, float32"),
        ({"processes": 2, "zero": 3, "sharded": True}, "under ZeRO-3 with a share of the model each, float32"),
        ({"device_map": "auto"}, "layers on several GPUs (auto), float32"),
    ],
)
def test_where_runs_are_compared_no_placement_is_like_another(place: dict[str, Any], says: str) -> None:
    hardware = {"processor": "P", "cores": 4, "threads": 4, "memory_bytes": 1, "accelerators": [], "driver": None}
    environment = Environment.model_validate(
        {"code": {"commit": None, "modified": None}, "python": "3", "libraries": {}, "hardware": hardware}
        | {"device": "cpu", "precision": "float32", "processes": 1, **place}
    )
    assert _ground(environment).endswith(says)
