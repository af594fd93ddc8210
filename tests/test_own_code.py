"""A base that brings its own code: nothing of it runs unless the command line names the revision."""

import json
import re
import shutil
from pathlib import Path

import pytest
import transformers

from peftlab.models.model import Files, Model
from peftlab.part import BadInput
from peftlab.recipe import Recipe, load_recipe
from peftlab.results import RunResult
from peftlab.runs.inference import answers, merge, of_lines
from peftlab.runs.run import run

CONFIGURATION = """\
from pathlib import Path
from transformers import BertConfig

class OwnConfig(BertConfig):
    model_type = "own-bert"

Path({witness!r}).touch()  # that somebody ran this
"""
MODELING = """\
from transformers import BertForTokenClassification
from .configuration_own import OwnConfig

class OwnForTokenClassification(BertForTokenClassification):
    config_class = OwnConfig
"""
AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForTokenClassification": "modeling_own.OwnForTokenClassification",
}


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """There once the base's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def base(tmp_path: Path, witness: Path, minilm: Files, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two layers of an architecture that transformers does not know, with MiniLM's tokenizer."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.set_seed(0)
    transformers.BertForTokenClassification(transformers.BertConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (minilm.folder / name).exists():
            shutil.copy(minilm.folder / name, folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(witness=str(witness)))
    (folder / "modeling_own.py").write_text(MODELING)
    describe(folder, model_type="own-bert", auto_map=AUTO_MAP)
    return folder


def describe(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def revision(base: Path) -> str:
    """As the refusal names it."""
    with pytest.raises(BadInput, match="brings its own code") as refusal:
        Model(id=str(base)).files()
    return re.findall(r"--trust-remote-code ([0-9a-f]{64})", str(refusal.value))[0]


@pytest.fixture
def recipe(base: Path, recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file, [f"model={base}", "method.targets=all-linear"])


def trained(recipe: Recipe, folder: Path) -> RunResult:
    return run(recipe, folder, trust=revision(Path(recipe.model.id)))


def test_without_a_word_nothing_of_it_runs(recipe: Recipe, tmp_path: Path, witness: Path) -> None:
    with pytest.raises(
        BadInput, match=r"own code \(configuration_own.py, modeling_own.py\).*--trust-remote-code [0-9a-f]{64}"
    ):
        run(recipe, tmp_path / "run")
    assert not witness.exists()


def test_the_named_revision_trains_and_is_recorded(recipe: Recipe, base: Path, tmp_path: Path, witness: Path) -> None:
    result = trained(recipe, tmp_path / "run")
    assert witness.exists()
    assert result.model_code == result.model_fingerprint == revision(base)


def test_code_that_was_changed_does_not_run(base: Path, recipe: Recipe, tmp_path: Path, witness: Path) -> None:
    before = revision(base)
    (base / "modeling_own.py").write_text(MODELING + "# one line more\n")
    with pytest.raises(BadInput, match=f"{before}: .* is at another revision, {revision(base)}"):
        run(recipe, tmp_path / "run", trust=before)
    assert not witness.exists()


def test_a_file_that_the_code_imports_is_part_of_the_revision(base: Path) -> None:
    before = revision(base)
    (base / "inner").mkdir()
    (base / "inner" / "layers.py").write_text("")
    assert revision(base) != before


def test_a_word_too_short_to_name_a_revision_is_none(base: Path) -> None:
    with pytest.raises(BadInput, match="another revision"):
        Model(id=str(base)).files(revision(base)[:11])
    assert Model(id=str(base)).files(revision(base)[:12]).trusted


def test_code_of_another_repository_is_never_run(base: Path, witness: Path) -> None:
    describe(base, auto_map={**AUTO_MAP, "AutoConfig": "someone/else--configuration_own.OwnConfig"})
    with pytest.raises(BadInput, match="'someone/else--configuration_own\\.OwnConfig' from another repository"):
        Model(id=str(base)).files(revision(base))
    assert not witness.exists()


def test_what_needs_no_code_of_its_own_is_not_given_trust(minilm: Files) -> None:
    with pytest.raises(BadInput, match="brings no code of its own"):
        Model(id="sentence-transformers/all-MiniLM-L6-v2").files("0123456789ab")
    with pytest.raises(BadInput, match="brings no code of its own"):
        Model(id=str(minilm.folder)).files("0123456789ab")


def test_an_architecture_that_transformers_knows_is_the_library_s_own(
    base: Path, recipe: Recipe, witness: Path
) -> None:
    describe(base, model_type="bert")
    assert not Model(id=str(base)).files().trusted


def test_a_tuned_model_is_used_under_the_same_word(recipe: Recipe, base: Path, tmp_path: Path) -> None:
    trained(recipe, tmp_path / "run")
    asked = lambda task: of_lines(task, ["12 Main Street"], "-")  # noqa: E731
    with pytest.raises(BadInput, match="brings its own code"):
        list(answers(tmp_path / "run", asked))
    (answer,) = answers(tmp_path / "run", asked, revision(base))
    assert answer["words"] == ["12", "Main", "Street"]
    assert merge(tmp_path / "run", tmp_path / "merged", revision(base)) < 1e-4
