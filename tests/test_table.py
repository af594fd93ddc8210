"""Tables, figures and the page: every number is the results' own, marked where it must be, the same each time."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab import forms
from peftlab.columns import difference
from peftlab.findings import make_findings
from peftlab.ledger import MIB, Flops, Inference, Ledger, Memory, Times
from peftlab.ledgers import Ledgers, Measurement
from peftlab.part import BadInput
from peftlab.plot import write_figures
from peftlab.report import page
from peftlab.results import RunResult
from peftlab.store import Counted, Predictions, Record, Store, validation_scores
from peftlab.suite import Row, load_suite, make_plan
from peftlab.table import markdown, read_findings, tables
from peftlab.tasks.token_classification import TokenClassification

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SUITE = """\
description: A made-up suite
seeds: [1, 2, 3, 4]
margin: 0.1
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data: datamade/usaddress
training: {epochs: 1, batch_tokens: 256}
quantizations: [none, nf4]
tasks: {addresses: {}}
methods:
  full: {method: full, learning_rate: 1e-4}
  lora: {method: lora, learning_rate: 1e-3}
  bitfit: {method: bitfit, learning_rate: 1e-3, quantizations: [none]}
published:
  - {task: addresses, method: lora, value: 0.8, tolerance: 0.1, source: "A paper, table 1"}
"""
SKILL = {"full": 0.8, "lora": 0.8, "bitfit": 0.4}
EXAMPLES = 200


def result(recipe: Any, score: float) -> RunResult:
    values = {
        "name": recipe.name, "digest": recipe.digest, "recipe": recipe.model_dump(mode="json"),
        "started": "2026-01-01T00:00:00+00:00", "command": ["peftlab"],
        "metrics": {"validation": {"entity_f1": score}} | ({"test": {"entity_f1": score}} if recipe.score_test else {}),
        "selection": "entity_f1", "best_step": 2, "stopped_early": False,
        "curve": {"steps": [1, 2], "scores": [score / 2, score], "losses": [1.0, 0.5]},
        "parameters": {"method": 1000, "head": 10, "trainable": 1010, "base": 101000, "share": 0.01},
        "method_figures": {}, "fidelity": None,
        "cost": {"load_seconds": 1.0, "train_seconds": 7777.0, "evaluate_seconds": 1.0, "optimizer_steps": 2,
                 "tokens": 400, "tokens_per_second": 200.0, "padding_share": 0.1, "adapter_bytes": 4096},
        "splits": {"train": {"examples": 20, "tokens": 400, "dropped": {"lost_words": 2}}},
        "model_source": "m", "model_fingerprint": "a" * 64, "data_source": "d", "data_fingerprint": "b" * 64,
        "environment": {
            "code": {"commit": "c" * 40, "modified": False}, "python": "3.11", "libraries": {"torch": "2.13.0"},
            "hardware": {"processor": "p", "cores": 2, "threads": 1, "memory_bytes": 1, "accelerators": [],
                         "driver": None},
            "device": "cpu", "precision": "float32", "processes": 1,
        },
    }  # fmt: skip
    return RunResult.model_validate_json(json.dumps(values))


def counts(recipe: Any) -> list[list[float]]:
    """Two entities expected in each of 200 examples, two predicted; some of them right."""
    skill = SKILL[recipe.method.kind]
    right = np.random.default_rng([recipe.seeds.initialization, sum(map(ord, recipe.method.kind))]).binomial(
        2, skill, EXAMPLES
    )
    return [[float(n), 2.0, 2.0] for n in right]


@pytest.fixture(scope="module")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites") / "made-up"
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
            score = float(forms.f1(np.array(rows).sum(axis=0)))
            if not recipe.score_test:  # the middle of the grid is best
                score -= abs(np.log(recipe.learning_rate / suite.methods[recipe.method.kind].learning_rate or 1)) / 10
            counted = [Counted(score="entity_f1", form="f1", rows=rows)]
            splits = ("validation", "test") if recipe.score_test else ("validation",)
            predictions = Predictions(kept={}, counts=dict.fromkeys(splits, counted))
            store.write(recipe, Record(state="done", result=result(recipe, score)), predictions)


def ledger(recipe: Any, *, peak: int, seconds: float, merged: float | None) -> Ledger:
    memory = {
        "base": 40 * MIB, "constants": MIB // 2, "method": MIB, "head": MIB, "optimizer": 4 * MIB, "kept": 100,
        "inputs": 1000, "activations": 10 * MIB, "gradients": 2 * MIB, "held": 0, "transient": 3 * MIB,
        "peak": peak * MIB, "best_state": None, "evaluation_peak": 50 * MIB, "reserved": None, "process_peak": None,
    }  # fmt: skip
    return Ledger(
        **{"name": recipe.name, "digest": recipe.digest, "examples": 2, "length": 128},
        memory=Memory(**memory),
        flops=Flops(forward=20e6, backward=19e6),
        times=Times(
            steps=10,
            median=seconds,
            quartiles=(seconds * 0.9, seconds * 1.2),
            tokens_per_second=256 / seconds,
            matrix_rate=1e11,
            rate_share=0.4,
        ),
        inference=Inference(unmerged=0.3, merged=merged, base=0.2, merge_error=1.5e-6 if merged else None),
        environment=result(recipe, 0.5).environment,
    )


@pytest.fixture(scope="module")
def measured_folder(suite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ledgers: of full fine-tuning and LoRA; that of BitFit failed."""
    folder = Path(shutil.copytree(suite_folder, tmp_path_factory.mktemp("measured") / "made-up"))
    suite = load_suite(folder)
    for method, kind, peak, seconds, merged in (
        ("full", "none", 100, 0.5, None), ("lora", "none", 60, 0.3, 0.2), ("lora", "nf4", 59, 0.4, None),
        ("bitfit", "none", None, 0.0, None),
    ):  # fmt: skip
        recipe = suite.recipe(Row("addresses", method, kind), learning_rate=0.123, seed=7, trial=True)
        values = {"recipe": recipe.model_dump(mode="json"), "state": "failed", "reason": "no such layer"}
        if peak is not None:
            found = ledger(recipe, peak=peak, seconds=seconds, merged=merged)
            values |= {"state": "done", "reason": None, "ledger": found}
        Ledgers(folder).write(recipe, Measurement(**values))
    return folder


def table_rows(text: str, number: int = 1) -> dict[tuple[str, str], list[str]]:
    """Cells by method and base, of the table that follows so many columns called method."""
    lines = text.split("| method |")[number].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(re.sub(r" \[.*\]", "", row[0]), row[1]): row[2:] for row in cells}


def test_a_row_is_mean_deviation_interval_difference_and_tests_of_its_runs(suite_folder: Path) -> None:
    rows = table_rows(markdown(read_findings(suite_folder)))
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
    text = markdown(read_findings(suite_folder))
    row = table_rows(text)["BitFit", "unquantised"]
    assert row[3] == "3 of 4, 1 diverged"
    assert not row[4].startswith("**")
    assert row[7] == "< 0.001" or float(row[7]) < 0.05
    assert "1 of 4 runs diverged: the loss is nan" in text


def test_what_was_not_run_is_a_dash_with_its_reason(suite_folder: Path) -> None:
    text = markdown(read_findings(suite_folder))
    assert table_rows(text)["full fine-tuning", "NF4"] == ["–"] * 9
    assert "unsupported: full fine-tuning changes the base's weights" in text


def test_times_are_shown_only_of_a_machine_that_did_nothing_else(suite_folder: Path, tmp_path: Path) -> None:
    assert "7,777" not in markdown(read_findings(suite_folder))
    alone = Path(shutil.copytree(suite_folder, tmp_path / "made-up"))
    (alone / "suite.yaml").write_text(SUITE + "own_machine: true\n")
    assert "7,777" in markdown(read_findings(alone))


def test_a_published_row_stands_beside_ours(suite_folder: Path) -> None:
    assert re.search(r"\| LoRA \| unquantised \| 0\.8000 \| 0\.\d{4} \| 0\.1000 \| yes \| A paper", markdown(
        read_findings(suite_folder)
    ))  # fmt: skip


def test_all_trials_are_shown_and_the_chosen_one_is_bold(suite_folder: Path) -> None:
    text = markdown(read_findings(suite_folder)).split("### Learning rates")[1]
    assert re.search(r"\| LoRA \| unquantised \| 0\.000333: 0\.\d+, \*\*0\.001: 0\.\d+\*\*, 0\.003: 0\.\d+ \|", text)


def changed(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A copy in which one LoRA run says something else."""
    copy = Path(shutil.copytree(folder, target / "made-up"))
    path = next((copy / "results").glob("addresses-lora-none-seed1-*.json"))
    values = json.loads(path.read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        inner = values["result"]
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize("key", ["data_fingerprint", "model_fingerprint"])
def test_results_of_other_data_or_models_are_refused(suite_folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(BadInput, match=r"of other (data|models) than .*: not to be compared"):
        read_findings(changed(suite_folder, tmp_path, {key: "0" * 64}))


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
    text = markdown(read_findings(changed(suite_folder, tmp_path, {key: value})))
    (note,) = re.findall(r"- (\w): some of its runs or trials on other ground: (.*)", text)
    assert says in note[1]
    assert f"| LoRA [{note[0]}] | unquantised |" in text
    assert "| full fine-tuning | unquantised |" in text


def test_a_score_that_its_counts_do_not_give_is_refused(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"metrics.test.entity_f1": 0.99})
    with pytest.raises(BadInput, match=r"entity_f1 is 0.99, but by its predictions' counts 0.8"):
        read_findings(copy)


def test_csv_holds_every_combination_unrounded(suite_folder: Path) -> None:
    findings = read_findings(suite_folder)
    rows = list(csv.DictReader(io.StringIO(tables(findings)["table.csv"])))
    assert [(row["method"], row["quantization"]) for row in rows] == [
        ("full", "none"), ("full", "nf4"), ("lora", "none"), ("lora", "nf4"), ("bitfit", "none")
    ]  # fmt: skip
    lora = findings.lines[2]
    assert lora.score is not None
    assert float(rows[2]["mean"]) == pytest.approx(lora.score.mean, rel=1e-9)
    assert rows[1]["mean"] == ""


@pytest.mark.parametrize("made", ["suite_folder", "measured_folder"])
def test_latex_is_balanced_escaped_and_cites_what_the_bibliography_has(
    made: str, request: pytest.FixtureRequest
) -> None:
    """No TeX engine is needed for that; whether it compiles is for one to say."""
    files = tables(read_findings(request.getfixturevalue(made)))
    text = files["table.tex"]
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    closed = re.findall(r"\\end\{(\w+)\}", text)
    assert sorted(opened) == sorted(closed)
    assert re.sub(r"\\.", "", text).count("{") == re.sub(r"\\.", "", text).count("}")
    prose = re.sub(r"\\(label|cite|usepackage|bibliography)\S*|^%.*|\}~", "", text, flags=re.M)
    assert not re.search(r"(?<!\\)[_#^~]", prose)
    for body in re.findall(r"\\begin\{tabular\}\{(l+r+)\}(.*?)\\end\{tabular\}", text, flags=re.S):
        for row in re.findall(r"^(.*)\\\\$", body[1], flags=re.M):
            assert len(re.findall(r"(?<!\\)&", row)) + 1 == len(body[0])
    cited = set(re.findall(r"\\cite\{(.*?)\}", text)[0].split(","))
    assert cited == set(re.findall(r"^@misc\{(.*),$", files["references.bib"], flags=re.M))
    assert {"hu2021lora", "dettmers2023qlora", "benzaken2021bitfit"} <= cited


def test_rendering_twice_gives_the_same_bytes(suite_folder: Path, tmp_path: Path) -> None:
    first, second = read_findings(suite_folder), read_findings(suite_folder)
    assert tables(first) == tables(second)
    names = [path.name for path in write_figures(first, tmp_path / "one")]
    write_figures(second, tmp_path / "two")
    assert {name.split(".")[0] for name in names} == {
        "addresses-parameters", "addresses-learning-rates", "addresses-trials", "addresses-learning-curves"
    }  # fmt: skip
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("folder", sorted({path.parent for path in BENCHMARKS.glob("*/results")}), ids=lambda p: p.name)
def test_a_committed_table_is_what_its_results_give(folder: Path) -> None:
    for name, text in tables(read_findings(folder)).items():
        assert (folder / name).read_text(encoding="utf-8") == text, name


def test_memory_is_shown_by_phase_in_mebibytes(measured_folder: Path) -> None:
    text = markdown(read_findings(measured_folder))
    rows = table_rows(text.split("### Memory")[1])
    bytes_of_step = ["40.00", "0.50", "2.00", "2.00", "4.00", "10.00", "3.00"]
    assert rows["LoRA", "unquantised"] == [*bytes_of_step, "60.00"]
    assert rows["LoRA", "NF4"] == [*bytes_of_step, "59.00"]
    assert rows["full fine-tuning", "NF4"] == ["–"] * 8  # refused
    assert "over a batch of 2 x 128 tokens" in text


def test_times_are_ratios_to_the_reference_and_operations_are_counts(measured_folder: Path) -> None:
    rows = table_rows(markdown(read_findings(measured_folder)).split("### Operations and times")[1])
    operations = ["20.00", "19.00", "1.95"]
    assert rows["full fine-tuning", "unquantised"] == [
        *operations, "1.00 (0.90 to 1.20)", "1.00", "40.00 %", "1.50", "–", "0.67", "–"
    ]  # fmt: skip
    assert rows["LoRA", "unquantised"] == [
        *operations, "0.60 (0.54 to 0.72)", "1.67", "40.00 %", "1.50", "1.00", "0.67", "1.5e-06"
    ]  # fmt: skip
    assert rows["LoRA", "NF4"][3:5] == ["0.80 (0.72 to 0.96)", "1.25"]


def test_a_ledger_that_failed_is_a_dash_with_its_reason(measured_folder: Path) -> None:
    text = markdown(read_findings(measured_folder))
    (letter,) = re.findall(r"- (\w): not measured: failed: no such layer", text)
    assert f"| BitFit [{letter}] | unquantised |{' – |' * 8}" in text


@pytest.mark.parametrize(
    ("key", "value", "compared"),
    [
        ("environment.hardware.processor", "another", False),
        ("environment.hardware.threads", 2, False),
        ("environment.code.commit", "d" * 40, True),
        ("examples", 4, False),
    ],
)
def test_times_are_compared_on_one_machine_and_batch_and_other_ground_is_marked(
    measured_folder: Path, tmp_path: Path, key: str, value: object, compared: bool
) -> None:
    copy = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (path,) = (copy / "ledgers").glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    *parents, last = key.split(".")
    inner = values["ledger"]
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(values))
    text = markdown(read_findings(copy))
    cells = table_rows(text.split("### Operations and times")[1])["LoRA", "unquantised"]
    assert (cells[3] != "–", cells[4] != "–", cells[8] != "–") == (compared,) * 3
    assert cells[:3] == ["20.00", "19.00", "1.95"]
    assert cells[6] == "1.50"
    notes = re.findall(r"- (\w): measured on other ground than the runs", text)
    assert len(notes) == (key != "examples")
    for letter in notes:
        assert f"| LoRA [{letter}] | unquantised | 40.00" in text
    assert "| full fine-tuning | unquantised | 40.00" in text


@pytest.mark.parametrize("share", [0.4, 0.97])
def test_times_that_other_processes_disturbed_are_marked(measured_folder: Path, tmp_path: Path, share: float) -> None:
    copy = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (path,) = (copy / "ledgers").glob("addresses-lora-none-*.json")
    values = json.loads(path.read_text())
    values["ledger"]["times"]["processor_share"] = share
    path.write_text(json.dumps(values))
    said = re.findall(r"- \w: its times are not its own: .* for (.*) of them", markdown(read_findings(copy)))
    assert said == (["60%"] if share == 0.4 else [])


def test_without_ledgers_nothing_is_said_of_them(suite_folder: Path, measured_folder: Path) -> None:
    plain, measured = tables(read_findings(suite_folder)), tables(read_findings(measured_folder))
    assert "### Memory" not in plain["table.md"]
    assert "peak_bytes" not in plain["table.csv"].replace("process_peak_bytes", "")
    before, after = (text["table.md"].split("### Memory")[0] for text in (plain, measured))
    assert after.strip() in before
    assert measured["table.tex"].count("{tabular}") == plain["table.tex"].count("{tabular}") + 4


def test_csv_holds_a_ledgers_integers(measured_folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(tables(read_findings(measured_folder))["table.csv"])))
    lora = rows[2]
    assert (lora["base_bytes"], lora["peak_bytes"], lora["inputs_bytes"]) == (str(40 * MIB), str(60 * MIB), "1000")
    assert (lora["step_seconds"], lora["step_seconds_low"], lora["merged_seconds"]) == ("0.3", "0.27", "0.2")
    assert [row["ledger"] for row in rows] == ["done", "", "done", "done", "failed"]
    assert rows[4]["peak_bytes"] == rows[1]["peak_bytes"] == ""


def test_memory_is_drawn_by_its_parts_where_every_line_has_a_ledger(measured_folder: Path, tmp_path: Path) -> None:
    def drawn(folder: Path, name: str) -> str:
        write_figures(read_findings(folder), tmp_path)
        path = tmp_path / f"addresses-{name}.svg"
        return path.read_text() if path.exists() else ""

    bars = drawn(measured_folder, "memory-bars")
    assert "peak of a training step, MiB" in bars
    for part in ("base weights", "optimiser", "activations or gradients", "transient"):
        assert part in bars
    assert drawn(measured_folder, "memory") == ""  # BitFit has a score and no ledger
    copy = Path(shutil.copytree(measured_folder, tmp_path / "made-up"))
    (failed,) = (copy / "ledgers").glob("addresses-bitfit-*.json")
    values = json.loads(failed.read_text())
    (other,) = (copy / "ledgers").glob("addresses-lora-none-*.json")
    values |= {"state": "done", "reason": None, "ledger": json.loads(other.read_text())["ledger"]}
    failed.write_text(json.dumps(values))
    assert "peak of a training step, MiB" in drawn(copy, "memory")
    for path in (copy / "results").glob("*.json"):  # a run's process was measured, and one line has no ledger
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "high_water_bytes": 2**30}))
    failed.unlink()
    assert "peak of the process, MiB" in drawn(copy, "memory")
    assert "peak of the process, MiB" in drawn(copy, "memory-bars")


def test_parameters_that_pruning_leaves_are_shown_where_a_method_says_so(suite_folder: Path, tmp_path: Path) -> None:
    copy = changed(suite_folder, tmp_path, {"method_figures": {"effective_parameters": 600}})
    files = tables(read_findings(copy))
    rows = table_rows(files["table.md"].split("### Cost")[1], 2)  # a column of that table is called so too
    assert "| method | base | method | head | trainable at the end |" in files["table.md"]
    assert rows["LoRA", "unquantised"][:3] == ["1,000", "10", "610"]
    assert rows["BitFit", "unquantised"][:3] == ["1,000", "10", "–"]
    values = list(csv.DictReader(io.StringIO(files["table.csv"])))
    assert [row["trainable_parameters_at_the_end"] for row in values] == ["", "", "610", "", ""]
    assert "at the end" not in tables(read_findings(suite_folder))["table.md"]


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)
        self.ids += [values["id"]] if values.get("id") else []  # type: ignore[list-item]
        self.targets += [str(values[key]) for key in ("href", "src") if key in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("made", ["suite_folder", "measured_folder"])
def test_the_page_is_whole_and_every_number_leads_to_its_runs(made: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(made)
    text = page(read_findings(folder))
    links = Links(text)
    assert links.open == []
    assert len(set(links.ids)) == len(links.ids)
    for target in links.targets:
        if target.startswith("#"):
            assert target[1:] in links.ids
        elif not target.startswith("data:image/svg+xml;base64,"):
            assert (folder / target).is_file()
    linked = {target for target in links.targets if target.startswith(("results/", "ledgers/"))}
    assert {name for name in linked if name.endswith(".json")} == {
        f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.json")
    }
    numbers = re.findall(r'<td[^>]*data-value="[^"]+">(.*?)</td>', text)
    assert numbers
    assert all("<a href=" in cell for cell in numbers if re.match(r"[\d.<+-]", cell))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_sorts_numbers_by_size_and_puts_what_is_missing_last(suite_folder: Path) -> None:
    script = page(read_findings(suite_folder)).split("<script>")[1].split("</script>")[0]
    code = script + 'for (const v of [["10", "", "9", "-0.5", "1e3"], ["b", "a"]]) console.log(v.sort(order).join("|"))'
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.strip() == "-0.5|9|10|1e3|\na|b"


def test_a_suite_without_results_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE + "name: mine\n")
    with pytest.raises(BadInput, match="no results yet; `peftlab bench"):
        read_findings(tmp_path)


def test_one_seed_is_told_apart_from_several(suite_folder: Path) -> None:
    """A line with a single seed beside others with three has a score, and no test that would need its spread."""
    suite, records = load_suite(suite_folder), Store(suite_folder).records()
    few = {d: s for d, s in records.items() if s.recipe.method.kind != "lora" or s.recipe.seeds.initialization < 2}
    line = next(line for line in make_findings(suite, few).lines if line.row.name == "addresses-lora-none")
    assert line.score is not None
    assert (line.score.n, line.score.deviation, line.comparison, line.tied) == (1, None, None, False)
    assert "A line with n = 1 speaks of that one trained model" in markdown(make_findings(suite, few))
    assert "two-level t test" in markdown(make_findings(suite, records))


def test_where_less_is_better_the_least_wins_the_trials(suite_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, records = load_suite(suite_folder), Store(suite_folder).records()
    row = Row("addresses", "lora", "none")
    assert len(make_plan(suite, validation_scores(records)).searches[row].trials) == 3  # the middle scores most
    monkeypatch.setattr(TokenClassification, "minimized", True)
    assert len(make_plan(suite, validation_scores(records)).searches[row].trials) == 4  # an edge wins: one more


def test_an_interval_ends_at_the_metrics_bounds(suite_folder: Path) -> None:
    """With two seeds Student's t reaches far, and an F1 below 0 or above 1 is none."""
    lines = read_findings(suite_folder).lines
    line = next(line for line in lines if line.comparison is not None and line.estimate is not None)
    wide = replace(line, estimate=replace(line.estimate, seed_variance=1.0, seed_degrees=1.0))
    assert wide.estimate.interval()[0] < -1  # type: ignore[union-attr]
    assert wide.interval == (0.0, 1.0)
    far = replace(line.comparison.difference, seed_variance=1.0, seed_degrees=1.0)  # type: ignore[union-attr]
    wide = replace(line, comparison=replace(line.comparison, difference=far))
    assert wide.gap == (-1.0, 1.0)
    assert forms.BOUNDS.keys() == forms.FORMS.keys()
    assert "-1.0000 to +1.0000" in difference(wide)
    assert line.interval == line.estimate.interval()  # type: ignore[union-attr]
