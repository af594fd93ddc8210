"""Recipes: defaults, digests, overrides, and one line for each error."""

import json
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.recipe import Recipe, load_recipe, recipe_schema

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = """\
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data: datamade/usaddress
method:
  kind: lora
  rank: 8
training:
  epochs: 1
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_short_and_described(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert 8 <= len(path.read_text().splitlines()) <= 15


def test_the_short_form_of_a_component_equals_the_long_one(tmp_path: Path) -> None:
    long = GOOD.replace("task: token_classification", "task: {kind: token_classification}")
    long = long.replace("data: datamade/usaddress", "data: {kind: hub, id: datamade/usaddress}")
    assert load_recipe(write(tmp_path, long)) == load_recipe(write(tmp_path, GOOD))


def test_the_digest_changes_with_what_shapes_the_result_and_with_nothing_else(tmp_path: Path) -> None:
    digest = load_recipe(write(tmp_path, GOOD)).digest
    renamed = load_recipe(write(tmp_path, GOOD + "description: another\nname: other\n"))
    explicit = load_recipe(write(tmp_path, GOOD + "  warmup: 0.06\n"))
    assert renamed.digest == explicit.digest == digest
    for change in ("method.rank=4", "seeds=1", "training.epochs=2", "quantization=nf4", "data.train_examples=9"):
        assert load_recipe(write(tmp_path, GOOD), [change]).digest != digest


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["training.learning_rate=3e-4", "method.targets=[query, value]"])
    assert recipe.training.learning_rate == 3e-4
    assert recipe.method.model_dump()["targets"] == ["query", "value"]
    assert refusal(tmp_path, GOOD, "method.rnak=4").startswith("--set method.rnak: method.rnak: unknown key (did you")
    assert refusal(tmp_path, GOOD, "method.rank=x").startswith("--set method.rank: method.rank: input should be")
    assert "key=value was expected" in refusal(tmp_path, GOOD, "method.rank")
    assert refusal(tmp_path, GOOD, "methd.rank=4").startswith("--set methd.rank: methd: unknown key (did you mean")
    assert "is more than one value" in refusal(tmp_path, GOOD, "method.rank=4\nfoo: 5")
    assert "give epochs or steps, not both (null unsets one)" in refusal(tmp_path, GOOD, "training.steps=4")


def test_overriding_a_kind_drops_the_keys_of_the_former_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["method.kind=adalora", "method.target_rank=3"])
    assert recipe.method.model_dump()["target_rank"] == 3


def test_the_kind_of_data_is_inferred_from_its_keys(tmp_path: Path) -> None:
    text = GOOD.replace("data: datamade/usaddress", "data: {train: mine.jsonl}")
    assert load_recipe(write(tmp_path, text)).data.kind == "files"


def test_a_file_name_that_is_no_valid_run_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name: missing, and the file's own, 'My NER', does not match"):
        load_recipe(write(tmp_path, GOOD, "My NER.yaml"))
    assert load_recipe(write(tmp_path, GOOD + "name: my-ner\n", "My NER.yaml")).name == "my-ner"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  rank: 8", "  rnak: 8", "mine.yaml:6: method.rnak: unknown key (did you mean 'rank'?)"),
        ("training:", "trainng:", "mine.yaml:7: trainng: unknown key (did you mean 'training'?)"),
        ("kind: lora", "kind: lorra", "mine.yaml:5: method.kind: unknown kind 'lorra' (did you mean 'lora'?)"),
        ("task: token_", "task: tokn_", "mine.yaml:2: task"),
        ("  kind: lora\n", "", "mine.yaml:4: method: needs a 'kind', one of "),
        ("  rank: 8", "  rank: eight", 'mine.yaml:6: method.rank: input should be a valid integer, found "eight"'),
        ("  rank: 8", "  rank: '8'", 'mine.yaml:6: method.rank: input should be a valid integer, found "8"'),
        ("  rank: 8", "  rank: true", "mine.yaml:6: method.rank: input should be a valid integer, found true"),
        ("  rank: 8", "  rank: 0", "mine.yaml:6: method.rank: input should be greater than or equal to 1, found 0"),
        (
            "  rank: 8",
            "  targets: 7",
            "mine.yaml:6: method.targets: input should be 'all-linear' or 'attention', found 7, or input",
        ),
        ("kind: lora", "kind: LoRA", "unknown kind 'LoRA' (did you mean 'lora'?)"),
        (
            "data: datamade/usaddress",
            "data: {kind: files, train: a, tset: b}",
            "data.tset: unknown key (did you mean 'test'?)",
        ),
        ("data: datamade/usaddress", "data: {id: x, splits: {dev: y}}", "mine.yaml:3: data.splits.dev"),
        (
            "epochs: 1",
            "adam_betas: [0.9, 2]",
            "mine.yaml:8: training.adam_betas.1: input should be less than 1, found 2",
        ),
        ("epochs: 1", "epochs: 1e12", "mine.yaml:8: training.epochs: input should be less than or equal to 10000"),
        (
            "training:\n",
            "seeds: -1\ntraining:\n",
            "mine.yaml:7: seeds: input should be greater than or equal to 0, found -1",
        ),
        (
            "training:\n",
            "seeds: yes\ntraining:\n",
            'seeds: a whole number or a mapping (initialization, data_order, dropout) was expected, found "yes"',
        ),
        (
            "training:\n",
            "quantization: 8\ntraining:\n",
            "quantization: a text or a mapping (kind, ...) was expected, f",
        ),
        (
            "  kind: lora\n  rank: 8",
            "- lora",
            "mine.yaml:4: method: a text or a mapping (kind, ...) was expected, found",
        ),
        ("\n  epochs: 1", " 3", "mine.yaml:7: training: a mapping (epochs, steps, learning_rate, schedule, ...) was"),
        ("data: datamade/usaddress", "data: {id: x, columns: a}", "data.columns: a mapping was expected, found"),
        ("training:\n", "seeds: 1180591620717411303424\ntraining:\n", "mine.yaml:7: seeds"),
        (
            "task: token_classification",
            "task: {kind: token_classification, labels: [O, NN]}",
            "'NN' is not an IOB2 tag",
        ),
        ("task: token_classification", "task: {kind: token_classification, labels: [O, O]}", "'O' is listed twice"),
        ("task: token_classification", "task: {kind: token_classification, labels: []}", "at least 1 item"),
        ("model: ", 'description: "\\ud800"\nmodel: ', "cannot be read"),
        ("  rank: 8", "  alpha: .nan", "mine.yaml:6: method.alpha: input should be a finite number"),
        ("epochs: 1", "schedule: linaer", "(did you mean 'linear'?), found \"linaer\""),
        ("epochs: 1", "keep_best: no", 'mine.yaml:8: training.keep_best: input should be a valid boolean, found "no"'),
        ("epochs: 1", "adam_betas: [0.9]", "mine.yaml:8: training.adam_betas.1: missing"),
        ("epochs: 1", "epochs: 1\n  steps: 5", "give epochs or steps, not both"),
        ("model: sent", "# model: sent", "mine.yaml:2: model: missing"),
        ("model: sentence-transformers/all-MiniLM-L6-v2", "model: 5", "mine.yaml:1: model: a text or a mapping (id"),
        (
            "model: sentence-transformers/all-MiniLM-L6-v2",
            "model: 'a b; rm'",
            "mine.yaml:1: model: string should match",
        ),
        ("model: ", "name: ../up\nmodel: ", "mine.yaml:1: name: string should match pattern"),
        (
            "method:\n  kind: lora\n  rank: 8",
            "method: full\nquantization: nf4",
            "full fine-tuning changes the base model's",
        ),
    ],
)
def test_an_error_is_one_line_with_file_line_and_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    message = refusal(tmp_path, GOOD.replace(old, new))
    assert says in message
    assert "\n" not in message


def test_all_errors_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, GOOD.replace("rank: 8", "rank: x").replace("epochs: 1", "epoch: 1")).splitlines()
    assert [line.split(":")[1] for line in lines] == ["6", "8"]


def test_a_missing_recipe_suggests_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "lora-ner.yaml")
    with pytest.raises(UserError, match=r"lora-nre.yaml: no such recipe \(did you mean 'lora-ner'\?\)"):
        load_recipe(tmp_path / "lora-nre.yaml")


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((RECIPES.parent / "docs" / "recipe.schema.json").read_text())
    assert committed == recipe_schema(), "run `make schema`"


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


def test_an_error_inside_a_mapping_is_reported_without_the_other_types(tmp_path: Path) -> None:
    text = GOOD.replace(
        "task: token_classification", "task:\n  kind: token_classification\n  class_weights:\n    PER: 0"
    )
    line = refusal(tmp_path, text)
    assert line == "mine.yaml:5: task.class_weights.PER: input should be greater than 0, found 0"


@pytest.mark.parametrize(("word", "kind"), [("lora", "lora"), ("LORA", "lora"), ("prefix-tuning", "prefix_tuning")])
def test_a_type_of_peft_that_peftlab_implements_names_its_kind(tmp_path: Path, word: str, kind: str) -> None:
    line = refusal(tmp_path, GOOD, "method.kind=peft", f"method.type={word}")
    assert line.endswith(f"type: {word} is implemented as a method of peftlab; use kind: {kind}")
