"""A paper, as a bibliography needs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One entry of a .bib file."""

    key: str  # "hu2021lora"
    author: str  # as BibTeX wants it: "Hu, Edward J. and others"
    title: str
    year: int
    arxiv: str

    def entry(self) -> str:
        """The entry; the title's capitals are kept.

        >>> print(Reference("a2020b", "A, B. and others", "T", 2020, "2001.00001").entry())
        @misc{a2020b,
          author = {A, B. and others},
          title = {{T}},
          year = {2020},
          eprint = {2001.00001},
          archivePrefix = {arXiv},
        }
        """
        return (
            f"@misc{{{self.key},\n  author = {{{self.author}}},\n  title = {{{{{self.title}}}}},\n"
            f"  year = {{{self.year}}},\n  eprint = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}},\n}}"
        )
