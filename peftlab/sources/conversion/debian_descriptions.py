"""Descriptions of Debian's packages in English and German, as pairs of sentences or paragraphs in pairs.jsonl.

A package has a synopsis and paragraphs in both languages. Synopses are a pair, and so are paragraphs at the same place
if both descriptions have as many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

LENGTHS = (0.4, 2.5)
"""Smallest and largest ratio of the letters of the German text to those of the English one: outside, one of them says
more than the other."""


def convert(source: Path, target: Path) -> None:
    """Write `target`/pairs.jsonl from Packages, Translation-en and Translation-de in `source`.

    Each line has `en`, `de`, `package` and `source_package`. An English text occurs once, up to case and white space.
    """
    english = dict(_descriptions(source / "Translation-en", "en"))
    packages = {fields["Package"]: fields for fields in _stanzas(source / "Packages")}
    written: set[str] = set()
    with (target / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for key, german in sorted(_descriptions(source / "Translation-de", "de")):
            package = key[0]
            if key not in english or package not in packages:
                continue
            source_package = packages[package].get("Source", package).split()[0]  # "gcc-12 (12.2.0-14)"
            for en, de in pairs(english[key], german):
                if en.casefold() not in written:
                    written.add(en.casefold())
                    row = {"en": en, "de": de, "package": package, "source_package": source_package}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def pairs(english: str, german: str) -> Iterator[tuple[str, str]]:
    """Texts that translate each other. Lists, untranslated texts and texts of very different length are left out.

    >>> english = "editor\\nIt edits.\\n.\\n * fast\\n * small\\n.\\nIt has\\nplug-ins."
    >>> german = "Texteditor\\nEr editiert.\\n.\\n * schnell\\n * klein\\n.\\nEr hat\\nPlug-ins."
    >>> list(pairs(english, german))
    [('editor', 'Texteditor'), ('It edits.', 'Er editiert.'), ('It has plug-ins.', 'Er hat Plug-ins.')]
    """
    parts = [[synopsis, *text.split("\n.\n")] for synopsis, _, text in (t.partition("\n") for t in (english, german))]
    if len(parts[0]) != len(parts[1]):
        parts = [part[:1] for part in parts]
    for one, other in zip(*parts, strict=True):
        if re.search(r"^\s", f"{one}\n{other}", re.MULTILINE):  # verbatim lines: a list
            continue
        en, de = " ".join(one.split()), " ".join(other.split())
        if en and de and en.casefold() != de.casefold() and LENGTHS[0] <= len(de) / len(en) <= LENGTHS[1]:
            yield en, de


def _descriptions(path: Path, language: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Package and MD5 of the English description that is meant, and the description in a language."""
    for fields in _stanzas(path):
        yield (fields["Package"], fields["Description-md5"]), fields[f"Description-{language}"]


def _stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Fields of each paragraph of a control file; a field's continuation lines follow it without their first space."""
    fields: dict[str, str] = {}
    name = ""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.strip():
                if fields:
                    yield fields
                fields = {}
            elif line[0] == " ":
                fields[name] += f"\n{line[1:].rstrip()}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
    if fields:
        yield fields
