"""The command line: `peftlab run | validate | list | schema | predict | merge`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from peftlab import assets, results
from peftlab.data import DATA
from peftlab.data.registry import REGISTRY
from peftlab.methods import METHODS
from peftlab.metrics import METRICS
from peftlab.part import BadInput
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import load_recipe, recipe_schema
from peftlab.results import result_folder
from peftlab.tasks import TASKS

app = typer.Typer(
    help="Parameter-efficient fine-tuning, compared fairly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/lora-ner.yaml.", show_default=False)]
Overrides = Annotated[list[str], typer.Option("--set", help="key=value, e.g. --set method.rank=8; may be repeated.")]


@contextmanager
def _bad_input() -> Iterator[None]:
    """Bad input is a line on standard error and exit code 2, never a traceback."""
    try:
        yield
    except BadInput as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs"),
    force: Annotated[bool, typer.Option("--force", help="Run again even if the result exists.")] = False,
) -> None:
    """Train, evaluate and save what a recipe says."""
    with _bad_input():
        loaded = load_recipe(recipe, overrides)
        folder = result_folder(output, loaded.name, loaded.digest)
        if (folder / results.FILE).exists() and not force:
            result = results.read_result(folder)
            print(f"{folder} holds this run already (--force runs it again)")
            for label, line in results.summary(result):
                print(f"{label:<11}{line}")
            return
        _quiet()
        from peftlab.run import run as run_recipe

        run_recipe(loaded, folder)


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(help="Recipe files.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Check recipes without loading anything."""
    wrong = 0
    for path in recipes:
        try:
            loaded = load_recipe(path, overrides)
        except BadInput as error:
            wrong += 1
            print(error, file=sys.stderr)
        else:
            print(f"{path}: good ({loaded.method.kind}, {loaded.quantization.kind}, {loaded.digest})")
    raise SystemExit(2 if wrong else 0)


@app.command(name="list")
def list_parts() -> None:
    """Show recipes, methods, quantisations, tasks, metrics, and the assets that need no hub."""
    print("recipes")
    for path in sorted(Path("recipes").glob("*.yaml")):
        try:
            print(f"  {path.stem:<28}{load_recipe(path).description}")
        except BadInput as error:
            print(f"  {path.stem:<28}{error}")
    for title, parts in (("methods", METHODS), ("quantisations", QUANTIZATIONS), ("tasks", TASKS), ("data", DATA)):
        print(title)
        for kind, part in parts.items():
            print(f"  {kind:<28}{(part.__doc__ or '').splitlines()[0]}")
    print("metrics")
    for name in METRICS:
        print(f"  {name}")
    print(f"assets (in {assets.cache_folder()})")
    for asset in assets.catalogue().values():
        state = "cached" if assets.cached(asset) else f"{asset.size / 1e6:.1f} MB to fetch"
        unread = "" if asset.sort == "model" or asset.id in REGISTRY else "  (no task reads it yet)"
        print(f"  {asset.id:<42}{asset.sort:<7}{state:<20}{asset.licence}{unread}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(recipe_schema(), indent=2))


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    text: Annotated[
        str, typer.Argument(metavar="TEXT|FILE|-", help="A text, a file of lines, or - for standard input.")
    ] = "-",
) -> None:
    """Apply a tuned model; one JSON object a line."""
    with _bad_input():
        _quiet()
        from peftlab.inference import answers

        lines, where = _input(text)
        for answer in answers(folder, lines, where):
            print(json.dumps(answer, ensure_ascii=False))


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)],
) -> None:
    """Fold the method into the base at its original precision, and say what that changes."""
    with _bad_input():
        _quiet()
        from peftlab.inference import merge as merge_run

        difference = merge_run(folder, output)
        print(f"{output}: merged; largest difference of a logit to the model as trained {difference:.2e}")


def _quiet() -> None:
    from peftlab.environment import quiet_libraries

    quiet_libraries()


def _input(text: str) -> tuple[list[str], str]:
    """Lines of text and where they are from."""
    if text == "-":
        return sys.stdin.read().splitlines(), "standard input"
    path = Path(text)
    if len(text) < 1000 and path.is_file():
        try:
            return path.read_text(encoding="utf-8").splitlines(), text
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{text}: cannot be read as UTF-8 text: {error}") from None
    return [text], "text"
