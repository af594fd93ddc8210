"""Sizes that bring a suite's methods to the same number of parameters, as they were found. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from peftlab.component import Settings
from peftlab.errors import UserError
from peftlab.io.atomic import atomic_write

FILE = "matched.json"


class Match(Settings):
    """What a suite asks for."""

    parameters: int = Field(gt=0)  # of the method without the head; AdaLoRA's with its initial ranks


class Size(Settings):
    """What was found for a method on a task's base: the size whose count of parameters is nearest to the wanted one."""

    task: str
    method: str
    wanted: int  # parameters
    base: dict[str, Any]  # the task's model as in its recipe, for which it was found
    settings: dict[str, Any]  # the method's likewise, before
    name: str  # of the setting: "rank", "bottleneck", "length"
    size: int
    parameters: int

    @property
    def left_over(self) -> float:
        """Parameters beyond the wanted ones, as a share of these; negative where there are fewer."""
        return self.parameters / self.wanted - 1


class Sizes(Settings):
    """The file."""

    version: Literal[1] = 1
    sizes: list[Size]


def read_sizes(folder: Path) -> list[Size]:
    """Those of a suite's folder; none if there is no file. Raises UserError."""
    path = folder / FILE
    try:
        return Sizes.model_validate_json(path.read_bytes()).sizes
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def write_sizes(sizes: Sequence[Size], folder: Path) -> None:
    """Replace the file by one rename."""
    atomic_write(folder / FILE, (Sizes(sizes=list(sizes)).model_dump_json(indent=1) + "\n").encode())
