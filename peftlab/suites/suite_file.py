"""Reading suite.yaml, and the sizes that were found for its `match`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from peftlab.errors import UserError, nearest
from peftlab.recipe import file_errors
from peftlab.recipe.paths import resolve_data_paths
from peftlab.recipe.yaml_reader import Document, read_yaml
from peftlab.suites.sizes import Size, read_sizes
from peftlab.suites.suite import Suite

FILE = "suite.yaml"


def suite_file(path: Path) -> Path:
    """The suite.yaml of a folder, or the file itself. Raises UserError if there is none."""
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        near = nearest(path.name, (other.parent.name for other in path.parent.glob(f"*/{FILE}")))
        raise UserError(f"{path}: no such suite{near}; a folder with a {FILE} was expected")
    return file


def load_suite(path: Path, *, matched: bool = True) -> Suite:
    """Read and validate a suite, given its folder or file. Raises UserError with one line per mistake.

    If the suite has a `match` and `matched` is true, raises UserError while sizes are still to be found.
    """
    file = suite_file(path)
    document = read_yaml(file)
    values = {"name": file.resolve().parent.name, **resolve_data_paths(document.values, file.parent)}
    try:
        suite = Suite.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise file_errors(error, Suite, file, Document(values, document.lines)) from None
    for row in suite.rows():
        try:
            suite.example(row)
        except ValidationError as error:
            line = document.lines.get(("tasks", row.task), 1)
            raise UserError(f"{file}:{line}: tasks.{row.task}: with {row.method}: {error.errors()[0]['msg']}") from None
    if suite.match is not None:
        suite.use_sizes([size for size in read_sizes(file.parent) if _is_current(suite, size)])
        if matched and suite.unmatched():
            raise UserError(f"{file}: match: sizes are still to be found: peftlab bench {path} --dry-run finds them")
    return suite


def _is_current(suite: Suite, size: Size) -> bool:
    """True if the size was found for the base model, method settings and parameter count that the suite has now."""
    row = next((row for row in suite.rows() if (row.task, row.method) == (size.task, size.method)), None)
    if row is None or not suite.methods[size.method].sized:
        return False
    if suite.match is None or size.target != suite.match.parameters:
        return False
    recipe = suite.example(row)
    try:
        recipe.method.resized(size.size)
    except ValidationError:  # edited by hand
        return False
    return (size.base, size.settings) == (recipe.model.model_dump(mode="json"), recipe.method.model_dump(mode="json"))
