"""Data sets that a registry package carries, read into the columns that the hub's copy has."""

from __future__ import annotations

import itertools
import json
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


def alpaca(folder: Path) -> dict[str, list[Row]]:
    """999 instructions in one split, 412 of them with an input."""
    path = folder / "alpaca_en_demo.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    return {"train": [Row(f"{path}, record {number}", record) for number, record in enumerate(records, start=1)]}


def chitchat(folder: Path) -> dict[str, list[Row]]:
    """7,168 conversations in one split: who begins is the user, what one says in a row is one message.

    Those in which nobody answers are left out, as is the last message where nobody answers it.
    """
    path = folder / "dataset.json"
    rows = []
    for name, conversation in json.loads(path.read_text(encoding="utf-8")).items():
        said = [message for turn in conversation["messages"] for message in turn if message["text"].strip()]
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": "\n".join(part["text"].strip() for part in run)}
            for number, (_, run) in enumerate(itertools.groupby(said, key=lambda message: message["sender"]))
        ]
        messages = messages[: len(messages) // 2 * 2]
        if messages:
            rows.append(Row(f"{path}, conversation {name}", {"messages": messages}))
    return {"train": rows}


REGISTRY: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
    "eriktks/conll2003": conll2003,
    "datamade/usaddress": usaddress,
    "hiyouga/llamafactory/alpaca_en_demo": alpaca,
    "BYU-PCCL/chitchat-dataset": chitchat,
}
