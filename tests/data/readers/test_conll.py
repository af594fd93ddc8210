"""CoNLL and CoNLL-U files: columns, comments and the lines of sentences."""

from pathlib import Path

import pytest

from peftlab.data.files import Files
from peftlab.errors import UserError
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
