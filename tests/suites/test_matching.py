"""Matching: methods resized to an equal number of parameters, with the closed forms of the papers as reference."""

import json
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.methods import METHODS
from peftlab.reports.setup import matching
from peftlab.suites.matching import matched_suite
from peftlab.suites.plan import make_plan
from peftlab.suites.sizes import FILE, read_sizes
from peftlab.suites.suite import Suite
from peftlab.suites.suite_file import load_suite

WIDTH, LAYERS, INNER = 384, 6, 1536  # MiniLM
SUITE = """\
seeds: [1, 2]
match: {parameters: 230000}
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data: {id: datamade/usaddress, columns: {labels: ner_tags}}
training: {epochs: 1, batch_tokens: 256}
quantizations: [none, nf4]
tasks:
  addresses: {}
methods:
  full: {method: full}
  lora: {method: {kind: lora, targets: attention}}
  adapter: {method: adapter}
  houlsby: {method: {kind: adapter, variant: houlsby}}
  prefix_tuning: {method: {kind: prefix_tuning, length: 7}}
  adalora: {method: {kind: adalora, initial_rank: 12, target_rank: 8}}
  prompt_tuning: {match: false, method: prompt_tuning}
"""


def write(folder: Path, text: str = SUITE) -> Path:
    (folder / "suite.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return matched_suite(write(tmp_path_factory.mktemp("matched")))


@pytest.mark.parametrize(
    ("method", "setting", "a_size"),
    [
        ("lora", "rank", LAYERS * 2 * (WIDTH + WIDTH)),  # query and value
        ("adapter", "bottleneck", LAYERS * (2 * WIDTH + 1)),
        ("houlsby", "bottleneck", 2 * LAYERS * (2 * WIDTH + 1)),
        ("prefix_tuning", "length", 2 * LAYERS * WIDTH),
        ("adalora", "initial_rank", LAYERS * (4 * (2 * WIDTH + 1) + 2 * (WIDTH + INNER + 1))),
    ],
)
def test_the_size_is_the_nearest_one_by_the_closed_form(method: str, setting: str, a_size: int, suite: Suite) -> None:
    (match,) = (size for size in suite.sizes() if size.method == method)
    biases = {"adapter": LAYERS * WIDTH, "houlsby": 2 * LAYERS * WIDTH}.get(method, 0)
    assert match.name == setting
    assert match.parameters == match.size * a_size + biases
    assert abs(match.parameters - 230_000) <= a_size / 2
    assert match.excess == pytest.approx(match.parameters / 230_000 - 1)


def test_every_run_has_the_matched_size(suite: Suite) -> None:
    plan = make_plan(suite, {})
    of = {recipe.name: recipe.method.model_dump() for recipe in plan.recipes}
    sizes = {size.method: size.size for size in suite.sizes()}
    assert of["addresses-lora-none"]["rank"] == sizes["lora"] != METHODS["lora"]().model_dump()["rank"]
    assert of["addresses-adapter-none"]["bottleneck"] == sizes["adapter"]
    assert of["addresses-adapter-none"]["reduction_factor"] is None
    adalora = of["addresses-adalora-none"]
    assert (adalora["initial_rank"], adalora["target_rank"]) == (sizes["adalora"], round(sizes["adalora"] * 8 / 12))
    assert of["addresses-prompt_tuning-none"]["length"] == METHODS["prompt_tuning"]().model_dump()["length"]


def test_the_excess_over_the_target_is_reported(suite: Suite) -> None:
    (text,) = matching(suite, "addresses")
    (lora,) = (size for size in suite.sizes() if size.method == "lora")
    assert f"lora rank {lora.size} ({lora.parameters:,}, {lora.excess * 100:+.2g} %)" in text
    assert text.endswith("without a size to adjust: full; not matched: prompt_tuning.")


def test_sizes_are_found_once_and_again_after_the_suite_has_changed(tmp_path: Path) -> None:
    text = SUITE[: SUITE.index("  adapter:")]
    with pytest.raises(UserError, match="match: sizes are still to be found: peftlab bench"):
        load_suite(write(tmp_path, text))
    matched_suite(tmp_path)
    written = (tmp_path / FILE).read_bytes()
    edited = json.loads(written)
    edited["sizes"][0]["size"] = 3  # a stored size is used
    (tmp_path / FILE).write_text(json.dumps(edited))
    assert matched_suite(tmp_path).sizes()[0].size == 3
    edited["sizes"][0]["size"] = -1  # unless it is invalid
    (tmp_path / FILE).write_text(json.dumps(edited))
    assert matched_suite(tmp_path).sizes()[0].size == json.loads(written)["sizes"][0]["size"]
    write(tmp_path, text.replace("targets: attention", "targets: all-linear"))
    with pytest.raises(UserError, match="sizes are still to be found"):
        load_suite(tmp_path)
    (size,) = matched_suite(tmp_path).sizes()
    assert size.parameters == size.size * LAYERS * (4 * 2 * WIDTH + 2 * (WIDTH + INNER))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("230000", "1000", "methods.lora: match: rank 2 already has"),
        ("match: false, ", "", "methods.prompt_tuning: match: not with length 599"),
        ("230000", "0", "match.parameters"),
    ],
)
def test_an_unreachable_target_is_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        matched_suite(write(tmp_path, SUITE.replace(old, new)))
    assert says in str(caught.value)
    assert not (tmp_path / FILE).exists()


def test_sizes_of_version_1_are_read(suite: Suite, tmp_path: Path) -> None:
    sizes = [{**size.model_dump(exclude={"target"}), "wanted": size.target} for size in suite.sizes()]
    (tmp_path / FILE).write_text(json.dumps({"version": 1, "sizes": sizes}))
    assert read_sizes(tmp_path) == suite.sizes()
