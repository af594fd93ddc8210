"""`peftlab list`: recipes, the components of a recipe, and the models and data that need no Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peftlab.cli.command import command
from peftlab.component import Component
from peftlab.data import DATA
from peftlab.data.registry import REGISTRY
from peftlab.errors import UserError
from peftlab.methods import METHODS
from peftlab.metrics import METRICS
from peftlab.optimizers import OPTIMIZERS
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import load_recipe
from peftlab.sources import assets
from peftlab.tasks import TASKS

COMPONENTS: Mapping[str, Mapping[str, type[Component]]] = {
    "methods": METHODS,
    "quantizations": QUANTIZATIONS,
    "optimizers": OPTIMIZERS,
    "tasks": TASKS,
    "data": DATA,
    "metrics": METRICS,
}


@command()
def list_components() -> None:
    """List recipes, methods, tasks, metrics, models and data."""
    print("recipes")
    for path in sorted(Path("recipes").glob("*.yaml")):
        print(f"  {path.stem:<28}{_description(path)}")
    for title, components in COMPONENTS.items():
        print(title)
        for kind, component in components.items():
            print(f"  {kind:<28}{(component.__doc__ or '').splitlines()[0]}")
    print(f"models and data from the package index (cached in {assets.cache_folder()})")
    for asset in assets.catalog().values():
        state = "cached" if assets.cached(asset) else f"{asset.size / 1e6:.1f} MB to fetch"
        unread = "" if asset.type == "model" or asset.id in REGISTRY else "  (not yet readable by any task)"
        print(f"  {asset.id:<48}{asset.type:<7}{state:<20}{asset.license}{unread}")


def _description(path: Path) -> str:
    try:
        return load_recipe(path).description
    except UserError as error:
        return str(error)
