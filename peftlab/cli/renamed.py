"""Former names of commands and options: each answers with one line that names the new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.errors import UserError

FORMER_NAMES = {"ledger": "profile", "plan": "estimate"}
FormerProfileOption = Annotated[bool, typer.Option("--ledger", hidden=True)]
PROFILE_RENAMED = "--ledger: renamed; use --profile"


def register(app: typer.Typer) -> None:
    """Add the former names to the command line, hidden from its help."""
    for former, name in FORMER_NAMES.items():
        app.command(
            former,
            hidden=True,
            add_help_option=False,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_refusal(former, name))


def _refusal(former: str, name: str) -> Callable[[], None]:
    @command()
    def refuse() -> None:
        raise UserError(f"peftlab {former}: renamed; use `peftlab {name}`")

    return refuse
