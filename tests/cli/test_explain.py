"""`peftlab explain KEY` and `peftlab reference`."""

from pathlib import Path

import pytest

from peftlab.cli.explain import explain
from peftlab.cli.reference import page
from peftlab.recipe import Recipe
from peftlab.recipe.reference import entries
from peftlab.suites.suite import Suite

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def explained(key: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    explain(key)
    return capsys.readouterr().out.splitlines()


def refused(key: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        explain(key)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_key_has_type_default_meaning_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    lines = explained("method.rank", capsys)
    assert lines[0] == "method.rank (lora)"
    assert lines[1].startswith("  Rank of the update")
    assert lines[2:] == [
        "  type     integer, at least 1, at most 4096",
        "  default  16",
        "  example  method: {kind: lora, rank: 16}",
    ]


def test_a_key_of_several_kinds_is_explained_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = explained("method.length", capsys)
    assert lines[0] == "method.length (p_tuning, prefix_tuning, prompt_tuning)"
    assert "" not in lines


def test_a_key_may_name_its_kind_or_the_users_own_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained("method.lora.rank", capsys) == explained("method.rank", capsys)
    assert explained("tasks.ner.data", capsys)[0] == "tasks.NAME.data"


@pytest.mark.parametrize("key", ["training", "replay", "method", "method.lora", "tasks", "data"])
def test_a_section_lists_what_is_in_it(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = explained(key, capsys)
    titles = [line for line in lines if line in ("keys", "kinds")]
    assert len(titles) == 1
    assert len(lines) > lines.index(titles[0]) + 2


def test_a_typo_is_one_line_with_the_nearest_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("training.wramup", capsys) == "training.wramup: unknown key (did you mean 'training.warmup'?)"
    assert "(did you mean 'training.warmup' or " in refused("warmup", capsys)
    assert refused("zzz", capsys) == "zzz: unknown key"


def test_every_key_of_recipes_and_suites_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {entry.key for model in (Recipe, Suite) for entry in entries(model)}
    assert len(keys) > 150
    for key in ("seeds", "training.adam_betas", "methods.NAME.method.rank", "tasks.NAME.task.labels"):
        assert key in keys
        assert explained(key, capsys)[0].startswith(key)


def test_the_committed_reference_is_current() -> None:
    assert PAGE.read_text() == page(), "run `make docs-reference`"
