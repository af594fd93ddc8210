"""Entity markers for relation extraction (Baldini Soares et al., 2019), as plain text: no token is added.

`@` around the first entity and `#` around the second are one token each in nearly every vocabulary, and are as accurate
as new tokens (Zhou & Chen, 2022, "An Improved Baseline for Sentence-level Relation Extraction").
"""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.data.examples import Row
from peftlab.errors import UserError

Span = tuple[int, int]  # [start, end), in characters of a text or in words of a list

MARKS = {"head": "@", "tail": "#"}


def mark_entities(text: str | Sequence[str], head: Span, tail: Span) -> tuple[str, int]:
    """The text with both entities marked, and the end of the last marker in it.

    >>> mark_entities("Ada was born in London.", (0, 3), (16, 22))
    ('@ Ada @ was born in # London # .', 30)
    >>> mark_entities(["Ada", "was", "born"], (0, 1), (2, 3))
    ('@ Ada @ was # born #', 20)
    >>> mark_entities("New York University", (0, 19), (0, 8))  # nested
    ('@ # New York # University @', 27)
    """
    if not isinstance(text, str):
        starts = [0]
        for word in text:
            starts.append(starts[-1] + len(word) + 1)
        head, tail = ((starts[start], starts[end] - 1) for start, end in (head, tail))
        text = " ".join(text)
    # At the same position: closing before opening; of two opening marks the longer entity first, of two closing marks
    # the shorter one.
    cuts = []
    for name, (start, end) in (("head", head), ("tail", tail)):
        cuts += [(start, 1, start - end, MARKS[name]), (end, 0, end - start, MARKS[name])]
    marked, previous, last = "", 0, 0
    for position, _, _, mark in sorted(cuts):
        marked += text[previous:position]
        marked += f"{'' if not marked or marked[-1].isspace() else ' '}{mark}"
        previous, last = position, len(marked)
        if text[position : position + 1] and not text[position].isspace():
            marked += " "
    return marked + text[previous:], last


def words(row: Row) -> str | list[str]:
    """The row's text, a string or a list of words. Raises UserError if it is neither."""
    text = row.fields["text"]
    if isinstance(text, (list, tuple)) and text and all(isinstance(word, str) and word.strip() for word in text):
        return list(text)
    if isinstance(text, str):
        return text
    raise UserError(f"{row.where}: text: a string or a list of words was expected, found {str(text)[:60]!r}")


def span(row: Row, name: str) -> Span:
    """The entity in field `name`, [start, end). Raises UserError if it is not a span of the text."""
    value, text = row.fields[name], words(row)
    unit = "characters" if isinstance(text, str) else "words"
    if not (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(position, int) and not isinstance(position, bool) for position in value)
        and 0 <= value[0] < value[1] <= len(text)
    ):
        raise UserError(
            f"{row.where}: {name}: [start, end) within the text's {len(text)} {unit} was expected, "
            f"found {str(value)[:60]}"
        )
    return value[0], value[1]
