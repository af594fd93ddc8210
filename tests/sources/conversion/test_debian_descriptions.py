"""Pairs of descriptions from the files of a Debian release."""

import json
from pathlib import Path

import pytest

from peftlab.sources.conversion.debian_descriptions import convert, pairs

PACKAGES = "Package: a\nSource: suite (2-1)\nDepends: x\n\nPackage: b\nSource: suite\n\nPackage: c\n"
ENGLISH = """\
Package: a
Description-md5: 1
Description-en: fast editor
 It edits texts.
 .
 It is small.

Package: b
Description-md5: 2
Description-en: Fast editor

Package: c
Description-md5: 3
Description-en: shell
"""
GERMAN = """\
Package: c
Description-md5: 9
Description-de: Befehlsinterpreter

Package: b
Description-md5: 2
Description-de: Flinker Texteditor

Package: a
Description-md5: 1
Description-de: schneller Texteditor
 Er bearbeitet
 Texte.
 .
 Er ist klein.

Package: gone
Description-md5: 4
Description-de: entfernt
"""


def test_descriptions_are_joined_by_package_and_version_and_an_english_text_occurs_once(tmp_path: Path) -> None:
    for name, text in (("Packages", PACKAGES), ("Translation-en", ENGLISH), ("Translation-de", GERMAN)):
        (tmp_path / name).write_text(text)
    (tmp_path / "out").mkdir()
    convert(tmp_path, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert [(row["en"], row["de"]) for row in rows] == [
        ("fast editor", "schneller Texteditor"),
        ("It edits texts.", "Er bearbeitet Texte."),
        ("It is small.", "Er ist klein."),
    ]
    assert {(row["package"], row["source_package"]) for row in rows} == {("a", "suite")}


@pytest.mark.parametrize(
    ("english", "german", "expected"),
    [
        ("one\nTwo.\n.\nThree.", "eins\nZwei, drei.", [("one", "eins")]),  # paragraphs that cannot be aligned
        ("GNU Emacs", "GNU emacs", []),  # not translated
        ("API", "Programmierschnittstelle", []),  # says more
        ("one\n  verbatim", "eins\n  woertlich", [("one", "eins")]),
    ],
)
def test_texts_that_do_not_translate_each_other_are_left_out(
    english: str, german: str, expected: list[tuple[str, str]]
) -> None:
    assert list(pairs(english, german)) == expected
