"""JSON: a file that is one array of objects, or an object a line for all its ending says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.jsonl import parse, read_jsonl
from peftlab.data.readers.lines import opened
from peftlab.errors import UserError

SPACE = re.compile(r"[ \t\r\n]*")
FLATTEN = (  # SQuAD's own files: articles of paragraphs of questions
    "jq -c '.data[].paragraphs[] | .context as $context | .qas[] | {id, question, context: $context, "
    "answers: {text: [.answers[].text], answer_start: [.answers[].answer_start]}}' FILE > FILE.jsonl"
)


def read_json(path: Path) -> list[Row]:
    """A row an object of the array, by the line it starts on. Raises UserError for what is no array of rows."""
    with opened(path) as file:
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
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return read_jsonl(path)
    nested = isinstance(whole, dict) and "data" in whole
    if not nested and "\n" not in text.strip():
        return read_jsonl(path)
    keys = ", ".join(list(whole)[:5]) if isinstance(whole, dict) else type(whole).__name__
    cure = f"; of SQuAD's articles rows are made by {FLATTEN}" if nested else ""
    raise UserError(f"{path}: an array of objects, or an object a line, was expected, found one value ({keys}){cure}")


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
            raise UserError(f"{path}:{line}: not JSON: the object that begins here is followed by neither , nor ]")
    if _after_space(text, position + 1) < len(text):
        line += text.count("\n", counted, position)
        raise UserError(f"{path}:{line}: not JSON: the array ends here, and something follows it")
    return rows


def _after_space(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    assert found is not None  # it may be empty
    return found.end()
