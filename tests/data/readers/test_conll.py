"""CoNLL and CoNLL-U files: columns, comments and the lines of sentences."""

from pathlib import Path
from typing import Any

import pytest

from peftlab.cli.file_guess import read_sample
from peftlab.data.files import Files
from peftlab.errors import UserError
from peftlab.recipe import Recipe
from tests.data.test_data import FIELDS


def test_a_conll_sentence_is_located_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nPeter NNP B-PER\n")
    rows, _ = Files(train=str(path)).read()
    assert [(row.where, row.fields) for row in rows["train"]] == [
        (f"{path}:3", {"tokens": ["EU", "rejects"], "labels": ["B-ORG", "O"]}),
        (f"{path}:7", {"tokens": ["Peter"], "labels": ["B-PER"]}),
    ]


def test_words_and_parts_of_speech_are_read_from_conllu(tmp_path: Path) -> None:
    lines = ["1-2\tzum\t_\t_", "1\tzu\tzu\tADP", "2\tdem\tder\tDET", "2.1\tx\tx\tNOUN", "3\tSee\tSee\tNOUN"]
    rest = "\t_" * 5 + "\tSpaceAfter=No\n"
    path = tmp_path / "a.conll"
    path.write_text("# sent_id = 1\n" + "1\tJa\tja\tINTJ" + rest + "\n" + "".join(line + rest for line in lines))
    rows, _ = Files(train=str(path)).read()
    assert [row.fields for row in rows["train"]] == [
        {"tokens": ["Ja"], "labels": ["INTJ"]},
        {"tokens": ["zu", "dem", "See"], "labels": ["ADP", "DET", "NOUN"]},
    ]


def test_columns_are_separated_by_blanks_and_tabs_only_and_comments_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("# sent_id = 1\n10\u00a0000 O\n# O\n\n")
    assert Files(train=str(path)).read()[0]["train"][0].fields == {"tokens": ["10\u00a0000", "#"], "labels": ["O", "O"]}
    path.write_text("New York\tB-LOC\n")
    assert Files(train=str(path)).read()[0]["train"][0].fields == {"tokens": ["New York"], "labels": ["B-LOC"]}


def test_a_line_with_another_number_of_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU B-ORG\nrejects\n")
    with pytest.raises(UserError, match=r"a.conll:2: 1 columns, expected 2"):
        Files(train=str(tmp_path / "a.conll")).load(FIELDS)


GERMEVAL = "1\tFC\tB-ORG\tO\n2\tUlm\tI-ORG\tB-LOC\n3\tsiegt\tO\tO\n\n1\tSo\tO\tO\n2\tist\tO\tO\n3\tes\tO\tO\n"
COMMENTED = "#\thttp://example.org/0\t[2012-01-01]\n" + GERMEVAL.replace(
    "\n\n", "\n\n#\thttp://example.org/1\t[2012]\n"
)
ONTO = "".join(
    f"#begin document (a/{d}); part 000\n"
    + "".join(f"a/{d} 0 {i} {word} NNP (TOP* - {tag}\n" for i, (word, tag) in enumerate(sentence))
    + "\n#end document\n"
    for d, sentence in enumerate([[("FC", "B-ORG"), ("Ulm", "I-ORG"), ("siegt", "O")], [("So", "O"), ("ist", "O")]])
)


def sentences(path: Path, content: str, **settings: Any) -> list[tuple[str, str]]:
    path.write_text(content)
    rows = Files(train=str(path), **settings).read()[0]["train"]
    assert [row.fault for row in rows] == [None] * len(rows)
    return [(" ".join(row.fields["tokens"]), " ".join(row.fields["labels"])) for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        "1 FC NNP I-NP B-ORG\n2 Ulm NNP I-NP I-ORG\n3 siegt VVFIN O O\n\n1 So ADV O O\n2 ist VAFIN O O\n",
        "0\tFC\tB-ORG\n1\tUlm\tI-ORG\n2\tsiegt\tO\n\n3\tSo\tO\n4\tist\tO\n",
        "1\tFC\tB-ORG\n2-3\tzum\tO\n2\tUlm\tI-ORG\n3\tsiegt\tO\n\n1\tSo\tO\n2\tist\tO\n",
        "B-ORG FC\nI-ORG Ulm\nO siegt\n\nO So\nO ist\n",
        "FC NNP B-ORG x\nUlm NNP I-ORG y\nsiegt VVFIN O z\n\nSo ADV O x\nist VAFIN O y\n",
        ONTO,
    ],
)
def test_word_and_tag_columns_are_recognized_by_their_content(content: str, tmp_path: Path) -> None:
    assert sentences(tmp_path / "a.conll", content) == [("FC Ulm siegt", "B-ORG I-ORG O"), ("So ist", "O O")]


@pytest.mark.parametrize("content", [GERMEVAL, COMMENTED])
def test_several_tag_columns_are_asked_for_and_never_guessed(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(content)
    line = content.startswith("#") + 1
    with pytest.raises(UserError) as caught:
        Files(train=str(path)).read()
    assert str(caught.value) == (
        f"{path}:{line}: columns 3, 4 have entity tags (1: 1, 2: FC, 3: B-ORG, 4: O); name the columns by position: "
        "data.conll_columns: {tokens: 2, labels: 3}"
    )
    outer = [("FC Ulm siegt", "B-ORG I-ORG O"), ("So ist es", "O O O")]
    assert sentences(path, content, conll_columns={"tokens": 2, "labels": 3}) == outer
    assert sentences(path, content, conll_columns={"tokens": 2, "labels": -1})[0][1] == "O B-LOC O"
    sample = read_sample([path])
    assert sample.settings == {"conll_columns": {"tokens": 2, "labels": 3}}
    assert " ".join(sample.rows[0].fields["tokens"]) == "FC Ulm siegt"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("".join(f"{i + 1} B-PER\n" for i in range(9)), "no column has words"),
        ("".join(f"word{i} lemma{i}\n" for i in range(30)), "column 2 has too many different values for labels"),
        ("".join(f"{i + 1} word{i}\n" for i in range(9)), "no column has tags"),
    ],
)
def test_numbers_are_no_words_and_words_are_no_labels(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"a.conll:1: {says} \(1: .*data.conll_columns: {{tokens: N, labels: N}}"):
        Files(train=str(path)).read()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tokens": 2}, "labels is missing; write {tokens: N, labels: N}"),
        ({"tokens": 2, "labels": 5}, "labels: 5, but .*a.conll has 4 columns"),
        ({"tokens": 2, "labels": 3, "pos": 4}, "'pos' is none of tokens, labels"),
    ],
)
def test_a_wrong_position_is_one_line(given: dict[str, int], says: str, tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(GERMEVAL)
    with pytest.raises(UserError, match=says):
        Files(train=str(tmp_path / "a.conll"), conll_columns=given).read()


def test_an_unopened_entity_is_read_as_a_beginning_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("".join(f"Lumia {'I' if i % 9 == 3 else 'B'}-PRO\n{i} I-PRO\nis O\n\n" for i in range(60)))
    head = {"name": "mine", "model": "x", "method": "lora", "data": {"train": str(path)}}
    with pytest.raises(UserError, match=r"'I-PRO' at 'Lumia' follows 'O', and no B-PRO opens it; task.unopened: begin"):
        Recipe.model_validate({**head, "task": "token_classification"}).rows()
    task = {"kind": "token_classification", "unopened": "begin"}
    rows = Recipe.model_validate({**head, "task": task}).rows().rows
    assert {tuple(row.fields["labels"]) for part in rows.values() for row in part} == {("B-PRO", "I-PRO", "O")}
    with pytest.raises(UserError, match=r"set task.scheme: iob2 and task.unopened: begin"):
        Recipe.model_validate({**head, "task": {"kind": "token_classification", "scheme": "iob1"}}).rows()
