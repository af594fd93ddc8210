"""Document of a suite: sections of paragraphs, tables, figures and links to runs, independent of the output format.

`sections.build_document` builds it from an analysis; `markdown`, `latex` and `html` render it. Every renderer shows the
same sections in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peftlab.component import Reference
from peftlab.reports.plots import Plot


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    text: str
    """As shown; "" if the value was not measured, which renderers show as a dash."""
    value: float | str | None = None
    """Value by which rows are sorted; None sorts last."""
    bold: bool = False
    runs: str | None = None
    """Anchor of the runs behind the value."""


@dataclass(frozen=True)
class TableRow:
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    """Letters of the footnotes on this row."""


@dataclass(frozen=True)
class Table:
    name: str
    """Unique within the document."""
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    explanations: tuple[str, ...] = ()
    """Paragraphs that say how to read the table."""
    filters: int = 0
    """Number of leading columns by whose values rows can be filtered, where the format can."""


@dataclass(frozen=True)
class Figure:
    name: str
    """Name of the file, without its extension."""
    title: str
    plot: Plot


@dataclass(frozen=True)
class Link:
    text: str
    path: str
    """Relative to the suite's folder."""


@dataclass(frozen=True)
class Run:
    """A run, trial or profile behind a table row."""

    text: str
    links: tuple[Link, ...]
    digest: str
    """Digest of the recipe."""
    recipe: str
    """Resolved recipe, as JSON."""


@dataclass(frozen=True)
class Runs:
    """Everything behind one table row."""

    anchor: str
    title: str
    runs: tuple[Run, ...]
    reason: str
    """Why there are no runs, if there are none."""


@dataclass(frozen=True)
class Footnotes:
    items: tuple[tuple[str, str], ...]
    """Letter and text."""


@dataclass(frozen=True)
class References:
    """Papers to cite."""

    references: tuple[Reference, ...]


Block = Paragraph | Table | Figure | Runs | Footnotes | References


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()
    collapsed: bool = False
    """Fold the blocks, where the format can."""

    @property
    def figures(self) -> Iterator[Figure]:
        yield from (block for block in self.blocks if isinstance(block, Figure))
        for section in self.sections:
            yield from section.figures


@dataclass(frozen=True)
class Document:
    title: str
    introduction: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def figures(self) -> Iterator[Figure]:
        for section in self.sections:
            yield from section.figures
