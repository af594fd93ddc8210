"""Method sizes that give a suite's methods an equal number of parameters, stored in matched.json. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from peftlab.component import Settings
from peftlab.errors import UserError
from peftlab.io.atomic import atomic_write

FILE = "matched.json"


class Match(Settings):
    """Resizing of a suite's methods to an equal number of trainable parameters."""

    parameters: int = Field(gt=0, examples=[300_000])
    """Target number of trainable parameters, without the task's head; AdaLoRA counts with its initial ranks."""


class Size(Settings):
    """The size of a method on one task's base model whose parameter count is nearest to the target."""

    task: str
    """Name of the task in the suite."""
    method: str
    """Name of the method in the suite."""
    target: int
    """Parameters asked for by `match`."""
    base: dict[str, Any]
    """The recipe's model for which the size was found."""
    settings: dict[str, Any]
    """The method's settings before resizing."""
    name: str
    """Setting that holds the size: "rank", "bottleneck" or "length"."""
    size: int
    """Value of that setting."""
    parameters: int
    """Trainable parameters at that size, without the head."""

    @property
    def excess(self) -> float:
        """Parameters beyond the target, as a fraction of it; negative if there are fewer."""
        return self.parameters / self.target - 1


class Sizes(Settings):
    """Content of matched.json."""

    version: Literal[2] = 2
    """Format version. Files of version 1 are read too."""
    sizes: list[Size]
    """One entry per task and resized method."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("version") == 1:
            sizes = [
                {"target" if key == "wanted" else key: value for key, value in size.items()} for size in values["sizes"]
            ]
            return {"version": 2, "sizes": sizes}
        return values


def read_sizes(folder: Path) -> list[Size]:
    """Sizes stored in a suite's folder; none if there is no file. Raises UserError."""
    path = folder / FILE
    try:
        return Sizes.model_validate_json(path.read_bytes()).sizes
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def write_sizes(sizes: Sequence[Size], folder: Path) -> None:
    """Replace matched.json atomically."""
    atomic_write(folder / FILE, (Sizes(sizes=list(sizes)).model_dump_json(indent=1) + "\n").encode())
