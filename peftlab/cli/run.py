"""`peftlab run`: train, evaluate and save a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import Overrides, RecipeFile, Trust
from peftlab.distributed import DeviceMap
from peftlab.errors import OutOfMemoryError, UserError
from peftlab.recipe import Recipe, load_recipe
from peftlab.results.result_file import is_finished, read_result
from peftlab.results.run_result import RunResult
from peftlab.results.summary import summary
from peftlab.runs.find_run import find_run, sources
from peftlab.runs.run_folder import sweep
from peftlab.training.settings import CheckpointPolicy

YEAR = 525_600  # minutes; torch's timeouts overflow if they are not bounded


@command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs"),
    force: Annotated[bool, typer.Option("--force", help="Run again even if the result exists.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest checkpoint; start from scratch if there is none.")
    ] = False,
    checkpoint_every: Annotated[
        str, typer.Option(metavar="STEPS|MINUTESm|never", help="Interval between checkpoints.")
    ] = "10m",
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="Number of checkpoints to keep.")] = 2,
    process_timeout: Annotated[
        float, typer.Option(min=0, max=YEAR, metavar="MINUTES", help="Longest wait for another process of the run.")
    ] = 30,
    score_base: Annotated[
        bool, typer.Option("--score-base", help="Also score the base model before fine-tuning, if it has its own head.")
    ] = False,
    device_map: Annotated[
        DeviceMap | None,
        typer.Option("--device-map", help="Spread the base model's layers over all GPUs of one process."),
    ] = None,
    trust: Trust = None,
    track: Annotated[
        list[str],
        typer.Option(metavar="TRACKER", help="Accelerate tracker: tensorboard, wandb, mlflow, ...; may be repeated."),
    ] = [],  # noqa: B006
) -> None:
    """Train, evaluate and save a recipe.

    A run that has its result is not repeated: its summary is printed.
    """
    loaded = load_recipe(recipe, overrides)
    folder = find_run(output, loaded)
    policy = _checkpoint_policy(checkpoint_every, keep_checkpoints)
    if is_finished(folder) and not force:
        _print_finished(folder, loaded, trust)
        return
    require_files(loaded)
    from peftlab.runs.run import RunOptions
    from peftlab.runs.run import run as run_recipe

    try:
        run_recipe(
            loaded,
            folder,
            RunOptions(
                resume=resume,
                checkpoints=policy,
                process_timeout=process_timeout,
                score_base=score_base,
                device_map=device_map,
                trust=trust,
                trackers=track,
            ),
        )
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"{error}{_memory_hint(loaded, device_map)}") from None


def require_files(recipe: Recipe) -> None:
    """Raise UserError if a file or folder of the recipe does not exist, before torch is imported."""
    recipe.model.require_folder()
    for path in [path for source in sources(recipe) for path in source.missing_files()]:
        raise UserError(
            f"{path}: no such file (looked for {Path(path).absolute()}); a path is relative to the recipe's folder"
        )


def _memory_hint(recipe: Recipe, device_map: DeviceMap | None) -> str:
    """The batch that would fit, for a model that is not spread over devices; else ""."""
    if device_map is not None or {"FSDP_VERSION", "ACCELERATE_DEEPSPEED_ZERO_STAGE"} & os.environ.keys():
        return ""
    from peftlab.profiling.estimate import oom_hint

    return oom_hint(recipe, int(os.environ.get("WORLD_SIZE", 1)))


def _print_finished(folder: Path, recipe: Recipe, trust: str | None) -> None:
    """Print the result of an earlier run. Raises UserError if its data or model have changed since."""
    try:
        result = read_result(folder)
    except UserError as error:
        raise UserError(f"{error}; --force runs it again") from None
    missing = _check_inputs(result, recipe, trust)
    sweep(folder)
    print(f"{folder} already holds this run (--force runs it again)")
    notes = [("data", f"{path} no longer exists; changes to it cannot be detected") for path in missing]
    for label, text in [*notes, *summary(result, recipe.task.baseline_rule)]:
        print(f"{label:<11}{text}")


def _check_inputs(result: RunResult, recipe: Recipe, trust: str | None) -> list[str]:
    """Compare the user's own data and model, which the digest names by path, with those of the run.

    Returns the paths that no longer exist. Raises UserError if the contents of any other have changed.
    """
    missing = [path for source in sources(recipe) for path in source.missing_files()]
    readable = any(source.local for source in sources(recipe)) and not missing
    data = recipe.rows().fingerprint if readable else result.data_fingerprint
    model = recipe.model.files(trust).fingerprint if recipe.model.local else result.model_fingerprint
    pairs = [("data", data, result.data_fingerprint), ("model", model, result.model_fingerprint)]
    if recipe.init_from is not None and result.init_from is not None:
        from peftlab.runs import initial_adapter

        adapter = initial_adapter.current_fingerprint(recipe.init_from)
        pairs.append(("adapter of init_from", adapter or result.init_from.fingerprint, result.init_from.fingerprint))
        missing += [recipe.init_from] if adapter is None else []
    for name, now, then in pairs:
        if now != then:
            raise UserError(f"the {name} of this run changed since {result.started}; --force runs it again")
    return missing


def _checkpoint_policy(interval: str, count: int) -> CheckpointPolicy:
    """`50` is steps, `5m` minutes."""
    if interval == "never":
        return CheckpointPolicy(minutes=None, keep_last=count)
    try:
        if interval.endswith("m"):
            return CheckpointPolicy(minutes=float(interval.removesuffix("m")), keep_last=count)
        return CheckpointPolicy(steps=int(interval), minutes=None, keep_last=count)
    except ValueError:
        raise UserError(f"--checkpoint-every {interval}: expected steps, e.g. 50, minutes, e.g. 5m, or never") from None
