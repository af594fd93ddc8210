"""Recognition of the token and tag columns of a CoNLL file by their content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from peftlab.errors import UserError

BETWEEN = re.compile(r"\d+[-.]\d+")  # number of a multiword token or of an empty node
ENTITY_TAG = re.compile(r"O|[BIESLU]-.+")
CHUNKS = frozenset({"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "VC", "PC"})
"""Types of chunks: a column of their tags stands next to one of entities and is not meant."""
UNIVERSAL = {"number": 0, "tokens": 1, "labels": 3}
"""Columns of CoNLL-U: number, word, lemma, universal part of speech, ..."""
MOST_TAGS = 0.95  # fraction of a column of tags that must be tags
MOST_LABELS = 0.5  # distinct values per token of a column of labels; words have more
FEWEST_TOKENS = 20  # for this fraction to mean anything
SHOWN = 30  # characters of a value in a message

Sentence = Sequence[Sequence[str]]


class AmbiguousColumns(UserError):
    """The content of the columns does not show which ones are meant."""

    def __init__(self, message: str, proposed: Mapping[str, int] | None) -> None:
        super().__init__(message)
        self.proposed = proposed
        """Positions from 1 that are likely, for a recipe that the user will read."""


def recognize(where: str, sentences: Sequence[Sentence], *, universal: bool = False) -> dict[str, int]:
    """Position from 0 of `tokens`, `labels`, and of the running `number` if there is one. Raises AmbiguousColumns.

    `sentences` are lists of lines of columns.

    The token is the first column that is neither a running number nor the same in every line of a sentence. The label
    is the only column of entity tags, tags of chunks aside; the last column if there is none.
    """
    width = len(sentences[0][0])
    columns = [[line[position] for sentence in sentences for line in sentence] for position in range(width)]
    if universal and all(sentence[0][0].split("-")[0] == "1" for sentence in sentences):
        return dict(UNIVERSAL)
    tags = [position for position in range(width) if _is_tags(columns[position])]
    words = [position for position in range(width) if position not in tags]
    counted = [position for position in words if _is_running(sentences, position)]
    candidates = [
        position for position in words if position not in counted and not _is_constant(sentences, position)
    ] or [position for position in words if position not in counted]
    entities = [position for position in tags if not _is_chunks(columns[position])] or tags
    if not candidates:
        raise _ambiguous(where, sentences[0], "no column has words", None)
    token = candidates[0]
    if len(entities) > 1:
        proposed = {"tokens": token + 1, "labels": entities[0] + 1}
        named = ", ".join(str(position + 1) for position in entities)
        raise _ambiguous(where, sentences[0], f"columns {named} have entity tags", proposed)
    number = {"number": counted[0]} if counted else {}
    if entities:
        return {"tokens": token, "labels": entities[0], **number}
    label = width - 1
    if label == token:
        raise _ambiguous(where, sentences[0], "no column has tags", None)
    distinct = len(set(columns[label])) / len(columns[label])
    if len(columns[label]) >= FEWEST_TOKENS and distinct > MOST_LABELS:
        raise _ambiguous(where, sentences[0], f"column {label + 1} has too many different values for labels", None)
    return {"tokens": token, "labels": label, **number}


def _is_tags(values: Sequence[str]) -> bool:
    """True if nearly all are entity tags: a wrong one is reported as such."""
    return sum(ENTITY_TAG.fullmatch(value) is not None for value in values) >= MOST_TAGS * len(values)


def _is_chunks(values: Sequence[str]) -> bool:
    types = {value[2:] for value in values if value != "O"}
    return bool(types) and types <= CHUNKS


def _is_running(sentences: Sequence[Sentence], position: int) -> bool:
    """True for the numbers 0, 1, ... or 1, 2, ... of the tokens, within a sentence or on through the file."""
    counts = [[line[position] for line in sentence] for sentence in sentences]
    plain = [[value for value in values if not BETWEEN.fullmatch(value)] for values in counts]
    if not all(value.isdecimal() and len(value) < 10 for values in plain for value in values):
        return False
    numbers = [[int(value) for value in values] for values in plain if values]
    return max(map(len, numbers), default=0) > 1 and all(
        number - values[0] == offset for values in numbers for offset, number in enumerate(values)
    )


def _is_constant(sentences: Sequence[Sentence], position: int) -> bool:
    """True if the lines of each sentence agree, as in a column with the document's name, and some have several."""
    return max(map(len, sentences)) > 1 and all(
        len({line[position] for line in sentence}) == 1 for sentence in sentences
    )


def _ambiguous(where: str, sentence: Sentence, reason: str, proposed: Mapping[str, int] | None) -> AmbiguousColumns:
    line = ", ".join(f"{position}: {value[:SHOWN]}" for position, value in enumerate(sentence[0], start=1))
    setting = ", ".join(f"{name}: {(proposed or {}).get(name, 'N')}" for name in ("tokens", "labels"))
    return AmbiguousColumns(
        f"{where}: {reason} ({line}); name the columns by position: data.conll_columns: {{{setting}}}", proposed
    )
