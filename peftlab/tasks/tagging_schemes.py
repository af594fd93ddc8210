"""Tagging schemes for entities: IOB2, IOB1 (Ramshaw & Marcus, 1995), IOBES and BILOU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Scheme = Literal["iob2", "iob1", "iobes", "bilou", "plain"]
PREFIXES: dict[Scheme, str] = {"iob2": "BI", "iob1": "BI", "iobes": "BIES", "bilou": "BILU"}
"""Letters before the type of a tag."""
SINGLE: dict[Scheme, str] = {"iob2": "B", "iob1": "I", "iobes": "S", "bilou": "U"}
"""Letter of an entity of one word."""
IOB2 = re.compile(r"O|[BI]-.+")
IN_IOB2 = {"S": "B", "U": "B", "E": "I", "L": "I"}


def is_tag(tag: str, scheme: Scheme) -> bool:
    """True if `tag` is a tag of the scheme.

    >>> is_tag("U-PER", "bilou"), is_tag("U-PER", "iobes"), is_tag("O", "iobes"), is_tag("B-", "iob2")
    (True, False, True, False)
    """
    return re.fullmatch(rf"O|[{PREFIXES[scheme]}]-.+", tag) is not None


def may_follow(previous: str, tag: str, scheme: Scheme) -> bool:
    """True if `tag` may follow `previous`. "O" stands for the start and the end of a sentence.

    >>> may_follow("O", "I-PER", "iob2"), may_follow("O", "I-PER", "iob1"), may_follow("O", "B-PER", "iob1")
    (False, True, False)
    >>> may_follow("B-PER", "O", "iobes"), may_follow("B-PER", "E-PER", "iobes"), may_follow("O", "L-PER", "bilou")
    (False, True, False)
    """
    same_type = previous[2:] == tag[2:]
    if scheme == "iob2":
        return tag[0] != "I" or same_type
    if scheme == "iob1":
        return tag[0] != "B" or same_type
    continues = tag[0] in "IEL"
    return continues == (previous[0] in "BI") and (same_type or not continues)


def to_iob2(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The same entities in IOB2.

    >>> to_iob2(["I-PER", "I-PER", "B-PER", "I-LOC", "O"], "iob1")
    ['B-PER', 'I-PER', 'B-PER', 'B-LOC', 'O']
    >>> to_iob2(["B-PER", "L-PER", "U-LOC", "O"], "bilou")
    ['B-PER', 'I-PER', 'B-LOC', 'O']
    """
    if scheme == "iob1":
        return [
            f"B{tag[1:]}" if tag[0] == "I" and previous[2:] != tag[2:] else tag
            for previous, tag in zip(["O", *tags], tags, strict=False)
        ]
    return [IN_IOB2.get(tag[0], tag[0]) + tag[1:] for tag in tags]
