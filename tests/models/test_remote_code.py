"""Base models with custom code: nothing of it runs unless the command line names the revision."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import transformers

from peftlab.errors import UserError
from peftlab.io.atomic import sha256
from peftlab.loading import head
from peftlab.loading.head import with_head
from peftlab.models.model import Model, ModelFiles
from peftlab.profiling.fake_model import full_config
from peftlab.recipe import Recipe, load_recipe
from peftlab.results.run_result import RunResult
from peftlab.runs.inference import answers, merge, rows_from_lines
from peftlab.runs.run import RunOptions, run
from peftlab.tasks.causal_lm import CausalLM

CONFIGURATION = """\
from pathlib import Path
from transformers import BertConfig

class OwnConfig(BertConfig):
    model_type = "own-bert"

Path({witness!r}).touch()  # evidence that this code ran
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
    """Path that exists after the base model's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def base(tmp_path: Path, witness: Path, minilm: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Base model of two layers with an architecture unknown to transformers and MiniLM's tokenizer."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # imported by another test
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
    """Revision that the error message names."""
    with pytest.raises(UserError, match="contains custom code") as caught:
        Model(id=str(base)).files()
    return re.findall(r"--trust-remote-code ([0-9a-f]{64})", str(caught.value))[0]


@pytest.fixture
def recipe(base: Path, recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file, [f"model={base}", "method.targets=all-linear"])


def trained(recipe: Recipe, folder: Path) -> RunResult:
    return run(recipe, folder, RunOptions(trust=revision(Path(recipe.model.id))))


def test_custom_code_does_not_run_without_the_option(recipe: Recipe, tmp_path: Path, witness: Path) -> None:
    with pytest.raises(
        UserError, match=r"custom code \(configuration_own.py, modeling_own.py\).*--trust-remote-code [0-9a-f]{64}"
    ):
        run(recipe, tmp_path / "run")
    assert not witness.exists()


def test_the_trusted_revision_trains_and_is_recorded(recipe: Recipe, base: Path, tmp_path: Path, witness: Path) -> None:
    result = trained(recipe, tmp_path / "run")
    assert witness.exists()
    assert result.model_code == result.model_fingerprint == revision(base)


def test_changed_code_does_not_run(base: Path, recipe: Recipe, tmp_path: Path, witness: Path) -> None:
    before = revision(base)
    (base / "modeling_own.py").write_text(MODELING + "# one line more\n")
    with pytest.raises(UserError, match=f"{before}: .* is at another revision, {revision(base)}"):
        run(recipe, tmp_path / "run", RunOptions(trust=before))
    assert not witness.exists()


def test_a_module_that_the_code_imports_is_part_of_the_revision(base: Path) -> None:
    before = revision(base)
    (base / "inner").mkdir()
    (base / "inner" / "layers.py").write_text("")
    assert revision(base) != before


def test_a_prefix_of_fewer_than_12_digits_does_not_name_a_revision(base: Path) -> None:
    with pytest.raises(UserError, match="another revision"):
        Model(id=str(base)).files(revision(base)[:11])
    assert Model(id=str(base)).files(revision(base)[:12]).trusted


def test_code_of_another_repository_never_runs(base: Path, witness: Path) -> None:
    describe(base, auto_map={**AUTO_MAP, "AutoConfig": "someone/else--configuration_own.OwnConfig"})
    with pytest.raises(UserError, match="'someone/else--configuration_own\\.OwnConfig' from another repository"):
        Model(id=str(base)).files(revision(base))
    assert not witness.exists()


@pytest.mark.parametrize("name", ["{outside}/configuration_own.OwnConfig", "../outside/configuration_own.OwnConfig"])
def test_code_outside_of_the_folder_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    describe(base, auto_map={**AUTO_MAP, "AutoConfig": name.format(outside=tmp_path / "outside")})
    with pytest.raises(UserError, match="from another repository or folder"):
        Model(id=str(base)).files(revision(base))


def test_code_behind_a_link_to_a_folder_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (base / "inner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="inner: is a link to a folder"):
        Model(id=str(base)).files(revision(base))


@pytest.mark.parametrize("file", ["config.4.0.0.json", "processor_config.json"])
def test_no_other_config_may_name_another_repository(base: Path, file: str) -> None:
    describe(base, configuration_files=["config.4.0.0.json"])
    foreign = {"inner_config": {"auto_map": {**AUTO_MAP, "AutoConfig": "someone/else--configuration_own.OwnConfig"}}}
    (base / file).write_text(json.dumps(foreign))
    with pytest.raises(UserError, match=f"{file} loads 'someone/else--configuration_own\\.OwnConfig' from another"):
        Model(id=str(base)).files(revision(base))


def test_an_auto_map_in_the_old_list_format_is_refused(base: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": ["someone/else--mine.Own", None]}))
    with pytest.raises(UserError, match=r"auto_map in tokenizer_config\.json is a list"):
        Model(id=str(base)).files(revision(base))


@pytest.mark.parametrize(
    ("modeling", "says"),
    [
        ("import never_heard_of\n" + MODELING, "ImportError: .*never_heard_of"),
        ("def (", "SyntaxError"),
        (MODELING.replace("class OwnFor", "class Other"), "AttributeError"),
        (MODELING + "    def __init__(self, config):\n        config.not_there\n", "AttributeError: .*not_there"),
        (MODELING + "    base_model_prefix = ''\n", "does not say which part of it is pretrained"),
    ],
)
def test_failing_code_gives_a_one_line_error(
    recipe: Recipe, base: Path, tmp_path: Path, modeling: str, says: str
) -> None:
    (base / "modeling_own.py").write_text(modeling)
    with pytest.raises(UserError, match=f"model: .*{says}"):
        trained(recipe, tmp_path / "run")


def test_a_snapshot_cached_without_its_code_is_incomplete(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--me--own"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base, repository / "snapshots" / commit, ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    with pytest.raises(UserError, match="contains custom code"):
        Model(id="me/own").files()
    with pytest.raises(UserError, match="the cached copy is incomplete"):  # the tests have no Hub
        Model(id="me/own").files(commit)
    shutil.copy(base / "modeling_own.py", repository / "snapshots" / commit)
    shutil.copy(base / "configuration_own.py", repository / "snapshots" / commit)
    assert Model(id="me/own").files(commit).code_revision == commit


def test_no_prompt_can_allow_code_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    transformers.DistilBertConfig(n_layers=2, dim=32, hidden_dim=64, n_heads=2).save_pretrained(tmp_path)
    describe(
        tmp_path,
        model_type="distilbert",
        auto_map={"AutoModelForCausalLM": f"{tmp_path / 'else'}--modeling_own.Own"},
    )
    monkeypatch.setattr("builtins.input", lambda question: "y")
    config = Model(id=str(tmp_path)).config()
    with pytest.raises(UserError, match="a distilbert cannot serve causal_lm without the base's own code"):
        head.check(config, CausalLM())
    with pytest.raises(UserError, match="a distilbert cannot serve causal_lm without the base's own code"):
        with_head(full_config(config.values, CausalLM()), CausalLM())
    assert not (tmp_path / "ran").exists()


def test_trust_is_refused_for_a_base_without_custom_code(minilm: ModelFiles) -> None:
    with pytest.raises(UserError, match="contains no custom code"):
        Model(id="sentence-transformers/all-MiniLM-L6-v2").files("0123456789ab")
    with pytest.raises(UserError, match="contains no custom code"):
        Model(id=str(minilm.folder)).files("0123456789ab")


def test_an_architecture_of_transformers_uses_the_library_s_code(base: Path, recipe: Recipe, witness: Path) -> None:
    describe(base, model_type="bert")
    assert not Model(id=str(base)).files().trusted


def test_inference_and_merge_need_the_same_option(recipe: Recipe, base: Path, tmp_path: Path) -> None:
    trained(recipe, tmp_path / "run")
    rows = lambda task: rows_from_lines(task, ["12 Main Street"], "-")  # noqa: E731
    with pytest.raises(UserError, match="contains custom code"):
        list(answers(tmp_path / "run", rows))
    (answer,) = answers(tmp_path / "run", rows, revision(base))
    assert answer["words"] == ["12", "Main", "Street"]
    assert merge(tmp_path / "run", tmp_path / "merged", revision(base)) < 1e-4


def test_a_custom_tokenizer_class_is_loaded_from_the_base_and_not_from_the_adapter(
    recipe: Recipe, base: Path, tmp_path: Path
) -> None:
    (base / "tokenization_own.py").write_text(
        "from transformers import BertTokenizerFast\nclass OwnTokenizerFast(BertTokenizerFast): pass\n"
    )
    settings = json.loads((base / "tokenizer_config.json").read_text())
    named = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizerFast"]}
    settings |= {"tokenizer_class": "OwnTokenizerFast", "auto_map": named}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    trained(recipe, tmp_path / "run")
    copy = tmp_path / "run" / "adapter" / "tokenization_own.py"
    copy.write_text(f"open({str(tmp_path / 'copy ran')!r}, 'w')\n")
    card = json.loads((tmp_path / "run" / "adapter" / "peftlab.json").read_text())
    card["files"][copy.name] = sha256(copy)
    (tmp_path / "run" / "adapter" / "peftlab.json").write_text(json.dumps(card))
    rows = lambda task: rows_from_lines(task, ["12 Main Street"], "-")  # noqa: E731
    (answer,) = answers(tmp_path / "run", rows, revision(base))
    assert answer["words"] == ["12", "Main", "Street"]
    assert not (tmp_path / "copy ran").exists()


def test_a_causal_model_with_custom_code_trains(base: Path, recipe_file: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, vocab_size=30522)).save_pretrained(base)
    (base / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own-llama'\n"
    )
    (base / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    describe(
        base,
        model_type="own-llama",
        auto_map={"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"},
    )
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "it rained on day {n}"}}\n' for n in range(9)))
    texts = str(tmp_path / "texts.jsonl")
    data = f"{{train: {texts}, validation: {texts}, test: {texts}}}"
    recipe = load_recipe(
        recipe_file,
        [f"model={base}", "task={kind: causal_lm, packing: true}", f"data={data}", "method.targets=all-linear"],
    )
    assert trained(recipe, tmp_path / "run").model_code == revision(base)
