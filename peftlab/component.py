"""A part: one choice of a recipe, a frozen pydantic model with a `kind`, which does its own work."""

import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

ExpandedPath = Annotated[str, AfterValidator(os.path.expanduser)]  # a path, or an id: ~ at its start is as in a shell


Precision = Literal["float32", "bfloat16"]  # dtype of the computation


class Settings(BaseModel):
    """Frozen, strictly typed values that cross a file; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Component(Settings):
    """One choice among several of its sort. A subclass fixes `kind: Literal["lora"] = "lora"`."""

    required_attributes: ClassVar[tuple[str, ...]] = ()
    """Class attributes that every concrete subclass must define; a class without one is refused at its definition."""

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        missing = [name for name in cls.required_attributes if not hasattr(cls, name)]
        if missing and isinstance(cls.model_fields["kind"].default, str):
            raise TypeError(f"{cls.__name__} lacks the class attribute {', '.join(missing)}")


P = TypeVar("P", bound=Component)


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


def tagged_union(parts: Mapping[str, type[Component]], *, default: str | None = None, key: str = "kind") -> Any:
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


@dataclass(frozen=True)
class Reference:
    """One entry of a .bib file."""

    key: str  # "hu2021lora"
    author: str  # as BibTeX wants it: "Hu, Edward J. and others"
    title: str
    year: int
    arxiv: str

    def entry(self) -> str:
        """The entry; the title's capitals are kept.

        >>> print(Reference(key="a2020b", author="A, B. and others", title="T", year=2020, arxiv="2001.00001").entry())
        @misc{a2020b,
          author = {A, B. and others},
          title = {{T}},
          year = {2020},
          eprint = {2001.00001},
          archivePrefix = {arXiv},
        }
        """
        return (
            f"@misc{{{self.key},\n  author = {{{self.author}}},\n  title = {{{{{self.title}}}}},\n"
            f"  year = {{{self.year}}},\n  eprint = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}},\n}}"
        )
