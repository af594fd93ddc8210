"""Finds the sizes with which a suite's methods have the same number of parameters, on bases that are shapes alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from peftlab.errors import UserError, first_error
from peftlab.io.atomic import check_writable
from peftlab.methods import TrainingPlan
from peftlab.models.model import ModelFiles
from peftlab.recipe import Recipe
from peftlab.suites import gpus, workers
from peftlab.suites.sizes import Size, write_sizes
from peftlab.suites.store import suite_folder
from peftlab.suites.suite import Suite, load_suite

STEPS = 1000  # what a method is told of the run; no count depends on it


def matched_suite(folder: Path) -> Suite:
    """The suite, its methods matched if it asks for it; what was not found yet is found now and written beside it."""
    suite = load_suite(folder, matched=False)
    if suite.match is None or not suite.unmatched():
        return suite
    check_writable(suite_folder(folder))

    def find() -> None:
        found = [find_size(suite, task, method) for task, method in suite.unmatched()]
        write_sizes([*suite.sizes(), *found], suite_folder(folder))

    if gpus.visible():
        workers.run_in_subprocess(find)
    else:
        find()
    return load_suite(folder)


def find_size(suite: Suite, task: str, method: str) -> Size:
    """The size nearest to the wanted count. Raises UserError if the method cannot get there.

    Counts grow evenly with a method's size: by r (d_in + d_out) a layer for LoRA, by 2 d + 1 for an adapter, by 2 d for
    a prefix. Two counts tell the third.
    """
    assert suite.match is not None
    wanted, row = suite.match.parameters, next(row for row in suite.rows() if (row.task, row.method) == (task, method))
    recipe = suite.recipe(row, learning_rate=suite.base_learning_rate(row), seed=suite.seeds[0], trial=False)
    setting = recipe.method.size_setting
    assert setting is not None
    where = f"methods.{method}: match"
    cure = f"methods.{method}.match: false leaves it as it is"

    def count(size: int) -> int:
        try:
            resized = recipe.method.resized(size)
        except ValidationError as error:
            raise UserError(f"{where}: not with {setting} {size}: {first_error(error)}; {cure}") from None
        try:
            return parameters(recipe.model_copy(update={"method": resized}))
        except UserError as error:
            raise UserError(f"{where}: not with {setting} {size} on {task}'s base: {error}; {cure}") from None

    few, more = count(2), count(3)
    size = round(2 + (wanted - few) / (more - few))
    if size < 1:
        raise UserError(f"{where}: with {setting} 2 it has {few:,} parameters already, {wanted:,} are wanted; {cure}")
    return Size(
        task=task,
        method=method,
        wanted=wanted,
        base=recipe.model.model_dump(mode="json"),
        settings=recipe.method.model_dump(mode="json"),
        name=setting,
        size=size,
        parameters=count(size),
    )


def parameters(recipe: Recipe) -> int:
    """The method's own, without the head. Raises UserError."""
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
    import torch

    from peftlab.loading.attach import apply_method, count_parameters
    from peftlab.profiling.estimate import sample_batch
    from peftlab.profiling.fake_model import meta_model

    shape = recipe.model.shape()
    batch = sample_batch(recipe, shape)
    base = meta_model(
        shape,
        ModelFiles(folder=Path(), source=shape.source, fingerprint=""),
        batch.task,
        recipe.quantization,
        compute=torch.float32,
        frozen=not recipe.method.trains_base,
        dropout=recipe.training.dropout,
        padding_token=batch.tokenizer.pad_token_id,
    )
    plan = TrainingPlan(
        optimizer_steps=STEPS,
        task_type=batch.task.task_type,
        head=base.head,
        longest_input=batch.length,
        tokenize=lambda text: list(batch.tokenizer(text, add_special_tokens=False)["input_ids"]),
    )
    with torch.device("meta"):
        return count_parameters(apply_method(recipe, base, plan), base).method
