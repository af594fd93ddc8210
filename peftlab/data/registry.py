"""Data sets that a registry package carries, read into the columns that the hub's copy has."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from peftlab.data.readers import read_conll
from peftlab.examples import Row

CONLL_2003 = ("tokens", "pos_tags", "chunk_tags", "ner_tags")


def conll2003(folder: Path) -> dict[str, list[Row]]:
    """14,041 / 3,250 / 3,453 sentences; tags are IOB2."""
    files = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
    return {split: read_conll(folder / name, CONLL_2003) for split, name in files.items()}


def usaddress(folder: Path) -> dict[str, list[Row]]:
    """1,513 addresses in one split; runs of the same tag become IOB2 entities."""
    path = folder / "labeled.xml"
    rows = []
    for number, address in enumerate(ElementTree.parse(path).getroot(), start=1):
        words: list[str] = []
        tags: list[str] = []
        for tag, run in itertools.groupby(address, key=lambda part: part.tag):
            for position, part in enumerate(run):
                words.append((part.text or "").strip())
                tags.append(f"{'I' if position else 'B'}-{tag}")
        if words:
            rows.append(Row(f"{path}, address {number}", {"tokens": words, "ner_tags": tags}))
    return {"train": rows}


REGISTRY: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
    "eriktks/conll2003": conll2003,
    "datamade/usaddress": usaddress,
}
