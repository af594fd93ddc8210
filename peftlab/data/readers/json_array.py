"""JSON: one array of objects, or one object per line in a file called .json."""

from __future__ import annotations

import json
import re
from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.jsonl import parse, read_jsonl
from peftlab.data.readers.lines import open_file
from peftlab.errors import UserError

SPACE = re.compile(r"[ \t\r\n]*")
FLATTEN = (  # for SQuAD's own files: articles of paragraphs of questions
    "jq -c '.data[].paragraphs[] | .context as $context | .qas[] | {id, question, context: $context, "
    "answers: {text: [.answers[].text], answer_start: [.answers[].answer_start]}}' FILE > FILE.jsonl"
)


def read_json(path: Path) -> list[Row]:
    """One row per object of the array, located by the line on which it starts. Raises UserError for other JSON."""
    with open_file(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x}") from None
    start = _after_space(text, 0)
    if text[start : start + 1] == "[":
        return _rows(path, text, start + 1)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return read_jsonl(path)
    nested = isinstance(value, dict) and "data" in value
    if not nested and "\n" not in text.strip():
        return read_jsonl(path)
    keys = ", ".join(list(value)[:5]) if isinstance(value, dict) else type(value).__name__
    hint = f"; to get rows from SQuAD's articles: {FLATTEN}" if nested else ""
    raise UserError(
        f"{path}: an array of objects, or one object per line, was expected, found one value ({keys}){hint}"
    )


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
