"""Entity markers for relation extraction (Baldini Soares et al., 2019), as text, so that no vocabulary grows.

`@` around the first entity and `#` around the second are each one token of nearly every vocabulary, and do as well as
new tokens do (Zhou & Chen, 2022, "An Improved Baseline for Sentence-level Relation Extraction").
"""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.data.examples import Row
from peftlab.errors import UserError

Span = tuple[int, int]  # from the first character or word up to one past the last

MARKS = {"head": "@", "tail": "#"}


def marked(text: str | Sequence[str], head: Span, tail: Span) -> tuple[str, int]:
    """The text with both entities marked, and where the last marker ends. Spans count characters, or words of a list.

    >>> marked("Ada was born in London.", (0, 3), (16, 22))
    ('@ Ada @ was born in # London # .', 30)
    >>> marked(["Ada", "was", "born"], (0, 1), (2, 3))
    ('@ Ada @ was # born #', 20)
    >>> marked("New York University", (0, 19), (0, 8))  # one inside the other
    ('@ # New York # University @', 27)
    """
    if not isinstance(text, str):
        starts = [0]
        for word in text:
            starts.append(starts[-1] + len(word) + 1)
        head, tail = ((starts[start], starts[end] - 1) for start, end in (head, tail))
        text = " ".join(text)
    # Closing before opening at the same place; of two that open the longer first, of two that close the shorter first.
    cuts = []
    for name, (start, end) in (("head", head), ("tail", tail)):
        cuts += [(start, 1, start - end, MARKS[name]), (end, 0, end - start, MARKS[name])]
    parts, before, last = "", 0, 0
    for place, _, _, mark in sorted(cuts):
        parts += text[before:place]
        parts += f"{'' if not parts or parts[-1].isspace() else ' '}{mark}"
        before, last = place, len(parts)
        if text[place : place + 1] and not text[place].isspace():
            parts += " "
    return parts + text[before:], last


def words(row: Row) -> str | list[str]:
    """The row's text, or its words. Raises UserError if it is neither."""
    text = row.fields["text"]
    if isinstance(text, (list, tuple)) and text and all(isinstance(word, str) and word.strip() for word in text):
        return list(text)
    if isinstance(text, str):
        return text
    raise UserError(f"{row.where}: text: a string or a list of words was expected, found {str(text)[:60]!r}")


def span(row: Row, name: str) -> Span:
    """[start, end) of an entity, checked against the text. Raises UserError."""
    value, text = row.fields[name], words(row)
    unit = "characters" if isinstance(text, str) else "words"
    if not (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(place, int) and not isinstance(place, bool) for place in value)
        and 0 <= value[0] < value[1] <= len(text)
    ):
        raise UserError(
            f"{row.where}: {name}: [start, end) within the text's {len(text)} {unit} was expected, "
            f"found {str(value)[:60]}"
        )
    return value[0], value[1]
