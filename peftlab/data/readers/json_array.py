"""JSON: one array of objects, SQuAD's articles, or one object per line in a file called .json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftlab.data.examples import Row
from peftlab.data.readers.jsonl import parse, read_jsonl
from peftlab.data.readers.lines import read_whole
from peftlab.data.readers.options import DEFAULT, ReadOptions
from peftlab.errors import UserError

SPACE = re.compile(r"[ \t\r\n]*")


def read_json(path: Path, options: ReadOptions = DEFAULT) -> list[Row]:
    """One row per object of the array, located by the line on which it starts. Raises UserError for other JSON.

    The array may be the value of the key `data`. SQuAD's own files, articles of paragraphs of questions, give one row
    per question.
    """
    text = read_whole(path, options.encoding)
    start = _after_space(text, 0)
    if text[start : start + 1] == "[":
        return _rows(path, text, start + 1)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return read_jsonl(path, options)
    data = value.get("data") if isinstance(value, dict) else None
    if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        return list(_articles(path, data)) if "paragraphs" in data[0] else list(_records(path, data))
    if "\n" not in text.strip():
        return read_jsonl(path, options)
    keys = ", ".join(list(value)[:5]) if isinstance(value, dict) else type(value).__name__
    raise UserError(f"{path}: an array of objects, or one object per line, was expected, found one value ({keys})")


def _records(path: Path, data: list[dict[str, Any]]) -> Iterator[Row]:
    for number, record in enumerate(data, start=1):
        value, fault = parse(json.dumps(record))
        yield Row(f"{path}, record {number}", value, fault)


def _articles(path: Path, data: list[dict[str, Any]]) -> Iterator[Row]:
    """The questions of SQuAD's articles, each with its paragraph and the title of its article."""
    for number, article in enumerate(data, start=1):
        where = f"{path}, article {number}"
        for paragraph in _dicts(article.get("paragraphs"), f"{where}: paragraphs"):
            shared = {"title": article.get("title"), "context": paragraph.get("context")}
            for count, question in enumerate(_dicts(paragraph.get("qas"), f"{where}: qas"), start=1):
                value, fault = parse(json.dumps({**shared, **question}))
                yield Row(f"{where}, question {question.get('id', count)}", value, fault)


def _dicts(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{name}: a list of objects was expected, as in SQuAD's files, found {str(value)[:60]!r}")
    return value


def _rows(path: Path, text: str, position: int) -> list[Row]:
    rows: list[Row] = []
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _after_space(text, position)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            _, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            where, what = getattr(error, "lineno", line), getattr(error, "msg", error)
            raise UserError(f"{path}:{where}: not JSON: {what}") from None
        value, fault = parse(text[position:end])
        rows.append(Row(f"{path}:{line}", value, fault))
        position = _after_space(text, end)
        if text[position : position + 1] == ",":
            position = _after_space(text, position + 1)
        elif text[position : position + 1] != "]":
            raise UserError(f"{path}:{line}: not JSON: the object that begins here is not followed by , or ]")
    if _after_space(text, position + 1) < len(text):
        line += text.count("\n", counted, position)
        raise UserError(f"{path}:{line}: not JSON: the array ends here, but the file does not")
    return rows


def _after_space(text: str, position: int) -> int:
    space = SPACE.match(text, position)
    assert space is not None  # the pattern matches the empty string
    return space.end()
