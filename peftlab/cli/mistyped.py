"""Commands and options that people type from habit: one line that says what to type instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import typer
from typer._click.exceptions import NoSuchOption, UsageError
from typer.core import TyperGroup

from peftlab.errors import printable
from peftlab.recipe.annotations import models_in
from peftlab.recipe.recipe import Recipe
from peftlab.recipe.synonyms import ADVICE, KEYS

COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "finetune", "fine-tune", "fit", "sft", "start", "launch"), "peftlab run RECIPE"),
    **dict.fromkeys(("infer", "inference", "generate", "chat", "classify", "ask"), "peftlab predict RUN TEXT"),
    **dict.fromkeys(
        ("eval", "evaluate", "test", "score"), "peftlab run RECIPE, which scores the test split at its end"
    ),
    **dict.fromkeys(("export", "convert", "fuse", "merge-lora"), "peftlab merge RUN --output FOLDER"),
    **dict.fromkeys(("check", "lint"), "peftlab validate RECIPE"),
    **dict.fromkeys(("new", "create"), "peftlab init --train FILE"),
    **dict.fromkeys(("benchmark", "sweep", "compare"), "peftlab bench SUITE"),
    **dict.fromkeys(("help",), "peftlab --help"),
}
"""Word that is no command -> the command line to type."""

NOT_OFFERED: Mapping[str, str] = {
    "serve": "not offered; peftlab merge writes a model that inference servers load",
    "push": "not offered; hf upload REPOSITORY FOLDER uploads a run",
    "upload": "not offered; hf upload REPOSITORY FOLDER uploads a run",
}

OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("config", "recipe", "yaml"), "the recipe without an option: peftlab run RECIPE"),
    **dict.fromkeys(("out", "output_folder"), "--output"),
    **dict.fromkeys(
        ("input", "file", "text", "prompt"), "the text or file without an option: peftlab predict RUN TEXT"
    ),
    **dict.fromkeys(
        ("run", "checkpoint", "adapter_path"), "the run's folder without an option: peftlab predict RUN TEXT"
    ),
    **dict.fromkeys(("overwrite", "overwrite_output_dir"), "--force"),
    "override": "--set KEY=VALUE",
    "dry_run": "peftlab doctor RECIPE, which tries a recipe on a small model",
    "verbose": "nothing, a run prints its steps",
}
"""Word that is no option, without its dashes -> what to type."""


class Commands(TyperGroup):
    """The commands; a command or option that does not exist gets one line with the cure and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NoSuchOption as error:
            words = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
            line = f"{error.option_name}: no such option{option_hint(error.option_name, words)}"
        except UsageError as error:
            unknown = re.match(r"No such command '(.*?)'", error.message)
            if unknown is None:
                raise
            line = f"peftlab {unknown[1]}: no such command{command_hint(unknown[1], list(self.commands))}"
        typer.echo(printable(line), err=True)
        raise SystemExit(2)


def command_hint(word: str, commands: list[str]) -> str:
    """` (...)` that says what to type for a command that does not exist.

    >>> command_hint("train", []), command_hint("predcit", ["predict"])
    (' (use peftlab run RECIPE)', ' (use peftlab predict)')
    """
    if word in COMMANDS:
        return f" (use {COMMANDS[word]})"
    if word in NOT_OFFERED:
        return f" ({NOT_OFFERED[word]})"
    if word.endswith((".yaml", ".yml")):
        return f" (use peftlab run {word})"
    close = difflib.get_close_matches(word, commands, n=1, cutoff=0.75)
    return f" (use peftlab {close[0]})" if close else "; peftlab --help lists them"


def option_hint(option: str, options: list[str]) -> str:
    """` (...)` that says what to type for an option that does not exist.

    >>> option_hint("--lr", []), option_hint("--num-train-epochs", [])
    (' (use --set training.learning_rate=VALUE)', ' (use --set training.epochs=VALUE)')
    """
    name = option.lstrip("-").replace("-", "_")
    if f"--{name.replace('_', '-')}" in options:
        return f" (use --{name.replace('_', '-')})"
    if name in OPTIONS:
        return f" (use {OPTIONS[name]})"
    text = KEYS.get(name) or ADVICE.get(name) or _recipe_key(name)
    key = re.match(r"[a-z_]+\.[a-z_]+|seeds\b|init_from\b|model\b", text)
    if key is not None:
        return f" (use --set {key.group()}=VALUE)"
    if text.startswith("quantization: nf4") or text.startswith("quantization: int8"):
        return f" (use --set quantization={text.split()[1]})"
    if text:
        return f" ({text})" if text.startswith("not ") else f" (use {text})"
    close = difflib.get_close_matches(option, options, n=1, cutoff=0.8)
    return (
        f" (use {close[0]})" if close else "; --help lists the command's, and --set KEY=VALUE sets any key of a recipe"
    )


def _recipe_key(name: str) -> str:
    """The dotted key of a recipe whose last part is `name`, if there is one such section; else ""."""
    fields = Recipe.model_fields
    if name in fields:
        return f"--set {name}=VALUE"
    places = [
        f"{section}.{name}"
        for section, field in fields.items()
        if any(name in model.model_fields for model in models_in(field.annotation))
    ]
    return places[0] if len(places) == 1 else ""
