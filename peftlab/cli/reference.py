"""`peftlab reference`: docs/reference.md, every key of recipes and suites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from peftlab.cli.command import command
from peftlab.component import Component
from peftlab.data import DATA
from peftlab.methods import METHODS
from peftlab.models.model import Model
from peftlab.optimizers import OPTIMIZERS
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe
from peftlab.recipe.reference import Entry, entries
from peftlab.tasks import TASKS
from peftlab.training.settings import Seeds, Training

HEADER = """\
# Reference

Every key of a recipe and of a suite. This page is generated from the code by `make docs-reference`;
`peftlab explain KEY` prints one entry, and [recipe.schema.json](recipe.schema.json) holds the same for editors.
"""
COMPONENTS: Mapping[str, Mapping[str, type[Component]]] = {
    "task": TASKS,
    "data": DATA,
    "method": METHODS,
    "quantization": QUANTIZATIONS,
    "training.optimizer": OPTIMIZERS,
}
RECIPE_MODELS: tuple[type[BaseModel], ...] = (
    Model,
    Training,
    Seeds,
    *(component for components in COMPONENTS.values() for component in components.values()),
)


@command()
def reference() -> None:
    """Print the reference of all keys (docs/reference.md)."""
    print(page(), end="")


def page() -> str:
    """The page as Markdown."""
    from peftlab.suites.suite import Suite

    recipe = entries(Recipe)
    top = [entry for entry in recipe if "." not in entry.key]
    lines = [HEADER, "## Recipe", "", *_table(top)]
    for section in _sections(top):
        inner = [entry for entry in recipe if entry.key.startswith(f"{section}.")]
        depth = section.count(".") + 1
        for kind in dict.fromkeys(entry.kind for entry in inner if entry.key.count(".") == depth):
            rows = [entry for entry in inner if entry.kind == kind and not entry.key.endswith(".kind")]
            lines += ["", f"## {section}" if kind is None else f"## {section}: {kind}", ""]
            lines += [*_about(section, kind)]
            lines += _table(rows) if rows else ["No keys but `kind`."]
    lines += ["", "## Suite", "", *_table(entries(Suite, documented=RECIPE_MODELS))]
    return "\n".join(lines) + "\n"


def _sections(top: Sequence[Entry]) -> Iterator[str]:
    """Keys whose mappings have tables of their own: each top key, and the components below it."""
    for entry in top:
        yield entry.key
        yield from (key for key in COMPONENTS if key.startswith(f"{entry.key}."))


def _about(section: str, kind: str | None) -> Iterator[str]:
    """The first line of the component's docstring."""
    component = COMPONENTS.get(section, {}).get(kind or "")
    if component is not None:
        yield (component.__doc__ or "").splitlines()[0]
        yield ""


def _table(rows: Sequence[Entry]) -> list[str]:
    lines = ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    for entry in rows:
        default = entry.default if entry.default in ("required", "the defaults of its keys") else f"`{entry.default}`"
        cells = (f"`{entry.key}`", entry.type, default, entry.meaning, f"`{entry.example}`")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines
