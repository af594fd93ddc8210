"""Find the method sizes at which a suite's methods have an equal number of parameters. Base models stay on meta."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from peftlab.errors import UserError, first_error
from peftlab.io.atomic import check_writable
from peftlab.recipe import Recipe
from peftlab.suites import gpus, workers
from peftlab.suites.sizes import Size, write_sizes
from peftlab.suites.store import suite_folder
from peftlab.suites.suite import Suite
from peftlab.suites.suite_file import load_suite

PLANNED_STEPS = 1000  # of the training plan that a method needs; no parameter count depends on it


def matched_suite(folder: Path) -> Suite:
    """The suite with its methods resized, if it has a `match`. Sizes not found before are found and stored."""
    suite = load_suite(folder, matched=False)
    if suite.match is None or not suite.unmatched():
        return suite
    check_writable(suite_folder(folder))

    def find() -> None:
        new = [find_size(suite, task, method) for task, method in suite.unmatched()]
        write_sizes([*suite.sizes(), *new], suite_folder(folder))

    if gpus.visible():
        workers.run_in_subprocess(find)
    else:
        find()
    return load_suite(folder)


def find_size(suite: Suite, task: str, method: str) -> Size:
    """The size whose parameter count is nearest to the target. Raises UserError if no size is.

    The count is linear in the size: r (d_in + d_out) per layer for LoRA, 2 d + 1 per unit of an adapter's bottleneck,
    2 d per position of a prefix. Two counts determine the line.
    """
    assert suite.match is not None
    target = suite.match.parameters
    recipe = suite.example(next(row for row in suite.rows() if (row.task, row.method) == (task, method)))
    setting = recipe.method.size_setting
    assert setting is not None
    where = f"methods.{method}: match"
    remedy = f"methods.{method}.match: false keeps its size"

    def count(size: int) -> int:
        try:
            resized = recipe.method.resized(size)
        except ValidationError as error:
            raise UserError(f"{where}: not with {setting} {size}: {first_error(error)}; {remedy}") from None
        try:
            return parameters(recipe.model_copy(update={"method": resized}))
        except UserError as error:
            raise UserError(
                f"{where}: not with {setting} {size} on the base model of {task}: {error}; {remedy}"
            ) from None

    at_two, at_three = count(2), count(3)
    size = round(2 + (target - at_two) / (at_three - at_two))
    if size < 1:
        raise UserError(f"{where}: {setting} 2 already has {at_two:,} parameters; the target is {target:,}; {remedy}")
    return Size(
        task=task,
        method=method,
        target=target,
        base=recipe.model.model_dump(mode="json"),
        settings=recipe.method.model_dump(mode="json"),
        name=setting,
        size=size,
        parameters=count(size),
    )


def parameters(recipe: Recipe) -> int:
    """Number of the method's trainable parameters, without the head. Raises UserError."""
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
    import torch

    from peftlab.loading.attach import apply_method, count_parameters, training_plan
    from peftlab.loading.model import LoadOptions
    from peftlab.profiling.estimate import sample_batch
    from peftlab.profiling.fake_model import meta_model

    config = recipe.model.config()
    batch = sample_batch(recipe, config)
    options = LoadOptions(
        device=torch.device("meta"),
        compute=torch.float32,
        frozen=not recipe.method.trains_base,
        dropout=recipe.training.dropout,
        padding_token=batch.tokenizer.pad_token_id,
    )
    base = meta_model(config, batch.task, recipe.quantization, options)
    plan = training_plan(
        recipe,
        base,
        task=batch.task,
        tokenizer=batch.tokenizer,
        optimizer_steps=PLANNED_STEPS,
        longest_input=batch.length,
    )
    with torch.device("meta"):
        return count_parameters(apply_method(recipe, base, plan), base).method
