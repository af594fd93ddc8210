"""GitHub-flavored Markdown tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right_aligned: Collection[int] = ()) -> str:
    r"""A table without a final newline. Vertical bars in cells are escaped.

    right_aligned: indices of the columns that are not left-aligned.

    >>> print(markdown_table(["method", "f1"], [["LoRA", "0.9"], ["a|b", ""]], right_aligned=[1]))
    | method | f1 |
    |---|---:|
    | LoRA | 0.9 |
    | a\|b |  |
    """
    rules = ("---:" if index in right_aligned else "---" for index in range(len(header)))
    return "\n".join([_line(header), f"|{'|'.join(rules)}|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
