"""The command line: `peftlab COMMAND`, one module per command, in the order in which a user meets them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from peftlab.cli import (
    bench,
    doctor,
    estimate,
    explain,
    init,
    list_components,
    merge,
    mistyped,
    overview,
    predict,
    profile,
    reference,
    renamed,
    report,
    reproduce,
    run,
    schema,
    table,
    validate,
    verify,
)

COMMANDS: Mapping[str, Callable[..., None]] = {
    "run": run.run,
    "init": init.init,
    "list": list_components.list_components,
    "explain": explain.explain,
    "validate": validate.validate,
    "doctor": doctor.doctor,
    "estimate": estimate.estimate,
    "profile": profile.profile,
    "predict": predict.predict,
    "merge": merge.merge,
    "bench": bench.bench,
    "table": table.table,
    "report": report.report,
    "verify": verify.verify,
    "reproduce": reproduce.reproduce,
    "overview": overview.overview,
    "schema": schema.schema,
    "reference": reference.reference,
}

app = typer.Typer(
    cls=mistyped.Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
renamed.register(app)


def _print_version(value: bool) -> None:
    if value:
        print(f"peftlab {importlib.metadata.version('peftlab')}")
        raise typer.Exit


@app.callback()
def peftlab(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Parameter-efficient fine-tuning, compared fairly."""
