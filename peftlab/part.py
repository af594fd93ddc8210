"""A part: one choice of a recipe, a frozen pydantic model with a `kind`, which does its own work."""

import difflib
import importlib
import os
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Annotated, Any, ClassVar, TypeVar, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


def printable(text: str) -> str:
    r"""What a terminal obeys, as what it shows.

    >>> printable("training.a\x1b[2J\r: unknown key")
    'training.a\\x1b[2J\\r: unknown key'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class BadInput(ValueError):
    """What a user can mend, said in one line: where, what was found, what was wanted. The command line exits with 2."""

    code: ClassVar[int] = 2  # of the command line

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))  # it may quote whatever a file holds


class Diverged(BadInput):
    """Training came to a loss or a gradient that is no number."""

    code: ClassVar[int] = 3


class OutOfMemory(BadInput):
    """Memory ran out. Of several processes it may be one alone that says so."""

    code: ClassVar[int] = 4


class ProcessLost(BadInput):
    """Another process of the run is gone, or does not answer."""

    code: ClassVar[int] = 5


FromHome = Annotated[str, AfterValidator(os.path.expanduser)]  # a path, or an id: ~ at its start is as in a shell


class Settings(BaseModel):
    """Frozen, strictly typed values that cross a file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Part(Settings):
    """One choice among several of its sort. A subclass fixes `kind: Literal["lora"] = "lora"`."""

    kind: str


def first_mistake(error: ValidationError) -> str:
    """What pydantic found first, in a line: `cost.tokens: Input should be a valid integer`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


P = TypeVar("P", bound=Part)


def discover(package: ModuleType, base: type[P]) -> dict[str, type[P]]:
    """Import every module of `package` and return its concrete subclasses of `base`, by kind, in order of kind."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found: dict[str, type[P]] = {}
    pending: list[type[P]] = [base]
    while pending:
        part = pending.pop()
        pending += part.__subclasses__()
        kind = part.model_fields["kind"].default
        if isinstance(kind, str) and part.__module__.startswith(f"{package.__name__}."):
            found[kind] = part
    return dict(sorted(found.items()))


def one_of(parts: Mapping[str, type[Part]], *, default: str | None = None, key: str = "kind") -> Any:
    """The type of a recipe field that takes any of `parts`: a mapping with a `kind`, or a bare word for its `key`.

    Without a kind the part is the one that has all of the given keys, or else the `default` one, if there is one.
    """

    def expand(value: object) -> object:
        if isinstance(value, str):
            value = {key: value}
        if isinstance(value, dict) and "kind" not in value and default is not None:
            fitting = [kind for kind, part in parts.items() if value.keys() <= part.model_fields.keys()]
            value = {"kind": fitting[0] if len(fitting) == 1 else default, **value}
        return value

    union: Any = Union[tuple(parts.values())]  # noqa: UP007 (built at run time)
    tagged: Any = Annotated[union, Field(discriminator="kind")] if len(parts) > 1 else union
    return Annotated[tagged, BeforeValidator(expand, json_schema_input_type=tagged | str)]


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known word nearest to `word`, or nothing.

    >>> nearest("lorra", ["lora", "adalora"])
    " (did you mean 'lora'?)"
    >>> nearest("zzz", ["lora"])
    ''
    """
    spelt = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower(), list(spelt), n=1, cutoff=0.6)
    return f" (did you mean {spelt[close[0]]!r}?)" if close else ""
