"""The command line: `peftlab run | bench | table | validate | init | doctor | ledger | plan | list | predict ...`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli import init as init_command
from peftlab.cli import suites as suite_commands
from peftlab.cli.errors import mistakes_in_a_line
from peftlab.cli.inputs import given_rows, given_texts
from peftlab.data import DATA
from peftlab.data.registry import REGISTRY
from peftlab.distributed import DeviceMap
from peftlab.errors import OutOfMemoryError, UserError
from peftlab.io.redact import redact
from peftlab.methods import METHODS
from peftlab.metrics import METRICS
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe, load_recipe, recipe_schema
from peftlab.recipe.yaml_reader import read_yaml
from peftlab.results import run_result
from peftlab.results.run_result import result_folder
from peftlab.runs.run_folder import sweep
from peftlab.sources import assets
from peftlab.tasks import TASKS
from peftlab.training.settings import CheckpointPolicy

app = typer.Typer(
    help="Parameter-efficient fine-tuning, compared fairly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

suite_commands.register(app)
app.command()(init_command.init)

YEAR = 525_600  # minutes: no library waits for ever

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/lora-ner.yaml.", show_default=False)]
Overrides = Annotated[list[str], typer.Option("--set", help="key=value, e.g. --set method.rank=8; may be repeated.")]
Trust = Annotated[
    str | None,
    typer.Option(
        "--trust-remote-code",
        metavar="REVISION",
        help="Let the base's own code run, if it is of this commit (of a folder: this fingerprint).",
        show_default=False,
    ),
]


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs"),
    force: Annotated[bool, typer.Option("--force", help="Run again even if the result exists.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, or start if there is none.")
    ] = False,
    checkpoint_every: Annotated[
        str, typer.Option(metavar="STEPS|MINUTESm|never", help="How often the state is kept.")
    ] = "10m",
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="How many of the newest stay.")] = 2,
    process_timeout: Annotated[
        float, typer.Option(min=0, max=YEAR, metavar="MINUTES", help="How long processes of a run wait for each other.")
    ] = 30,
    score_base: Annotated[
        bool, typer.Option("--score-base", help="Score the base before it is tuned, too, if it has no new head.")
    ] = False,
    device_map: Annotated[
        DeviceMap | None,
        typer.Option("--device-map", help="Spread a base too large for one GPU over all of them, in one process."),
    ] = None,
    trust: Trust = None,
    track: Annotated[
        list[str],
        typer.Option(metavar="TRACKER", help="Tell accelerate's tensorboard, wandb, mlflow, ...; may be repeated."),
    ] = [],  # noqa: B006
) -> None:
    """Train, evaluate and save what a recipe says."""
    with mistakes_in_a_line():
        loaded = load_recipe(recipe, overrides)
        folder = result_folder(output, loaded.name, loaded.digest)
        keeping = _keeping(checkpoint_every, keep_checkpoints)
        if run_result.is_finished(folder) and not force:
            try:
                result = run_result.read_result(folder)
            except UserError as error:
                raise UserError(f"{error}; --force runs it again") from None
            missing = _refuse_outdated(result, loaded, trust)
            sweep(folder)
            print(f"{folder} holds this run already (--force runs it again)")
            gone = [("data", f"{path} is gone, and nobody can tell if it has changed since") for path in missing]
            for label, line in [*gone, *run_result.summary(result)]:
                print(f"{label:<11}{line}")
            return
        _quiet()
        from peftlab.runs.run import run as run_recipe

        try:
            run_recipe(
                loaded,
                folder,
                resume=resume,
                keeping=keeping,
                process_timeout=process_timeout,
                score_base=score_base,
                device_map=device_map,
                trust=trust,
                trackers=track,
            )
        except OutOfMemoryError as error:
            from peftlab.profiling.estimate import oom_hint

            spread = device_map is not None or {"FSDP_VERSION", "ACCELERATE_DEEPSPEED_ZERO_STAGE"} & os.environ.keys()
            said = "" if spread else oom_hint(loaded, int(os.environ.get("WORLD_SIZE", 1)))
            raise OutOfMemoryError(f"{error}{said}") from None


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(help="Recipe files.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Check recipes, without weights or data."""
    wrong = 0
    for path in recipes:
        try:
            loaded = load_recipe(path, overrides)
            _check_base(loaded, path)
        except UserError as error:
            wrong += 1
            print(redact(str(error)), file=sys.stderr)
        else:
            print(f"{path}: good ({loaded.method.kind}, {loaded.quantization.kind}, {loaded.digest})")
    raise SystemExit(2 if wrong else 0)


@app.command()
def overview(
    recipes: Annotated[list[Path], typer.Argument(help="Recipe files.", show_default=False)],
    results: Annotated[Path, typer.Option(help="Folder of their results.")] = Path("runs"),
    variants: Annotated[
        list[str],
        typer.Option(
            "--variant", metavar="'NAME KEY=VALUE'", help="Add a row for a recipe under an override; repeatable."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Print a Markdown table of what recipes gave."""
    with mistakes_in_a_line():
        from peftlab.reports.overview import overview as table

        print(table(recipes, results, variants), end="")


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe.", show_default=False)] = None,
    overrides: Overrides = [],  # noqa: B006
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Try every combination and write docs/compatibility.md instead.")
    ] = False,
) -> None:
    """Check in seconds, on a small model with random weights, that a recipe trains, reloads, merges and resumes."""
    with mistakes_in_a_line():
        if (recipe is None) != matrix or (matrix and overrides):
            raise UserError("doctor: give a recipe, or --matrix alone")
        _quiet()
        if recipe is None:
            from peftlab.doctor import compatibility

            whole = compatibility.try_all()
            compatibility.FILE.parent.mkdir(exist_ok=True)
            compatibility.FILE.write_text(compatibility.document(whole), encoding="utf-8")
            failed = sum(cell.failed is not None for cell in whole.cells)
            print(f"{compatibility.FILE}: {len(whole.cells)} combinations, {failed} fail")
            raise SystemExit(1 if failed else 0)
        loaded = load_recipe(recipe, overrides)
        from peftlab.doctor.diagnosis import examine
        from peftlab.runs.console import show_check

        bad = 0
        for check in examine(loaded):
            show_check(check.name, check.ok, check.detail, check.cure)
            bad += check.ok is False
        raise SystemExit(1 if bad else 0)


@app.command()
def ledger(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    examples: Annotated[int | None, typer.Option(min=1, help="Of the batch; the recipe's if not given.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of each example; at most 128 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead.")] = False,
) -> None:
    """Measure what a training step of a recipe takes: bytes by phase, operations, seconds."""
    with mistakes_in_a_line():
        loaded = load_recipe(recipe, overrides)
        _quiet()
        from peftlab.profiling.measure import measure
        from peftlab.profiling.profile import lines

        measured = measure(loaded, examples=examples, length=length)
        if as_json:
            print(measured.model_dump_json(indent=2))
            return
        for label, line in lines(measured):
            print(f"{label:<14}{line}")


@app.command(name="plan")
def plan_recipe(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help='Memory of a device, e.g. "24 GiB".', show_default=False)] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many of them share a step.")] = 1,
    sharded: Annotated[bool, typer.Option("--sharded", help="Each has a share of the model (FSDP2), no copy.")] = False,
    examples: Annotated[int | None, typer.Option(min=1, help="Of the batch; the recipe's if not given.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of each example; at most 128 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a record a line instead.")] = False,
) -> None:
    """Forecast what a recipe needs, with each quantisation of its base, and cut its batch so that it fits a device."""
    with mistakes_in_a_line():
        loaded = load_recipe(recipe, overrides)
        _quiet()
        from peftlab.profiling import estimate

        limit = None if device is None else estimate.parse_size(device)
        forecasts = estimate.estimate(
            loaded, limit=limit, devices=devices, sharded=sharded, examples=examples, length=length
        )
        for forecast in forecasts:
            if as_json:
                print(forecast.model_dump_json())
                continue
            print(f"quantization: {forecast.quantization}")
            for label, line in estimate.lines(forecast, limit):
                print(f"  {label:<14}{line}")


@app.command(name="list")
def list_parts() -> None:
    """Show recipes, methods, quantisations, tasks, metrics, and the assets that need no hub."""
    print("recipes")
    for path in sorted(Path("recipes").glob("*.yaml")):
        try:
            print(f"  {path.stem:<28}{load_recipe(path).description}")
        except UserError as error:
            print(f"  {path.stem:<28}{error}")
    for title, parts in (("methods", METHODS), ("quantisations", QUANTIZATIONS), ("tasks", TASKS), ("data", DATA)):
        print(title)
        for kind, part in parts.items():
            print(f"  {kind:<28}{(part.__doc__ or '').splitlines()[0]}")
    print("metrics")
    for name in METRICS:
        print(f"  {name}")
    print(f"assets (in {assets.cache_folder()})")
    for asset in assets.catalog().values():
        state = "cached" if assets.cached(asset) else f"{asset.size / 1e6:.1f} MB to fetch"
        unread = "" if asset.type == "model" or asset.id in REGISTRY else "  (no task reads it yet)"
        print(f"  {asset.id:<48}{asset.type:<7}{state:<20}{asset.license}{unread}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    with mistakes_in_a_line():
        print(json.dumps(recipe_schema(), indent=2))


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT|FILE|-", help="A text, a file of lines or of rows, or - for standard input."),
    ] = "-",
    trust: Trust = None,
) -> None:
    """Apply a tuned model; one JSON object a line."""
    with mistakes_in_a_line():
        rows = given_rows(text)
        lines, where = given_texts(text) if rows is None else ([], text)
        _quiet()
        from peftlab.runs.inference import answers, of_file, of_lines

        columns = run_result.columns_of(folder)
        for answer in answers(
            folder, lambda task: of_lines(task, lines, where) if rows is None else of_file(task, rows, columns), trust
        ):
            print(json.dumps(answer, ensure_ascii=False))


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)],
    trust: Trust = None,
) -> None:
    """Fold the method into the base at its original precision, and say what that changes."""
    with mistakes_in_a_line():
        _quiet()
        from peftlab.runs.inference import merge as merge_run

        difference = merge_run(folder, output, trust)
        print(f"{output}: merged; largest difference of a logit to the model as trained {difference:.2e}")


def _check_base(recipe: Recipe, path: Path) -> None:
    """Raise UserError if the task wants the base's own head, the base's config is here, and they do not go together."""
    shape = None if recipe.task.new_head else recipe.model.known_shape()
    if shape is None:
        return
    _quiet()
    from peftlab.loading import head

    try:
        head.check(shape, recipe.task)
    except UserError as error:
        raise UserError(f"{path}:{read_yaml(path).lines.get(('task',), 1)}: {error}") from None


def _refuse_outdated(result: run_result.RunResult, recipe: Recipe, trust: str | None) -> list[str]:
    """A recipe's digest knows files of the user's own by name; what is in them may have changed.

    Returns those that are not there any more, of which nothing can be said. Raises UserError for the others.
    """
    sources = [recipe.data, *([recipe.replay.data] if recipe.replay is not None else [])]
    missing = [path for source in sources for path in source.missing_files()]
    known = any(source.local for source in sources) and not missing
    data = recipe.rows().fingerprint if known else result.data_fingerprint
    model = recipe.model.files(trust).fingerprint if recipe.model.local else result.model_fingerprint
    for what, now, then in (("data", data, result.data_fingerprint), ("model", model, result.model_fingerprint)):
        if now != then:
            raise UserError(f"the {what} of this run changed since {result.started}; --force runs it again")
    return missing


def _keeping(every: str, kept: int) -> CheckpointPolicy:
    """`50` is steps, `5m` minutes."""
    if every == "never":
        return CheckpointPolicy(minutes=None, kept=kept)
    try:
        if every.endswith("m"):
            return CheckpointPolicy(minutes=float(every.removesuffix("m")), kept=kept)
        return CheckpointPolicy(steps=int(every), minutes=None, kept=kept)
    except ValueError:
        raise UserError(f"--checkpoint-every {every}: steps, e.g. 50, or minutes, e.g. 5m, or never") from None


def _quiet() -> None:
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
