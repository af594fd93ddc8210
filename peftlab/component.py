"""Components: the building blocks of a recipe. Each is a frozen pydantic model with a `kind` and does its own work."""

import importlib
import os
import pkgutil
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

ExpandedPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path or a Hub id. A leading ~ is expanded."""

Precision = Literal["float32", "bfloat16"]
"""Dtype in which the model computes."""


class Settings(BaseModel):
    """Frozen, strictly typed values that are read from or written to a file. An unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    added_fields: ClassVar[Mapping[str, Any]] = {}
    """Recipe keys added after the first stored results -> the JSON value that means what the code did before.

    With that value the key is left out of a recipe's digest, and a stored recipe without the key is read with it.
    """

    named_by_content: ClassVar[tuple[str, ...]] = ()
    """Keys with paths, which are left out of the digest if `fingerprints` names the contents instead."""


def _describe_kind(schema: dict[str, Any], component: type[BaseModel]) -> None:
    """Describe the key `kind` of a component's JSON schema by the first line of the component's docstring."""
    kind = schema.get("properties", {}).get("kind")
    if kind is not None:
        kind["description"] = (component.__doc__ or "").splitlines()[0]


class Component(Settings, ABC):
    """One choice of a recipe, e.g. a method or a task.

    A subclass fixes `kind: Literal["lora"] = "lora"`, implements the abstract methods and assigns every ClassVar that
    its base class declares without a value. A subclass that lacks such a value raises TypeError where it is defined.
    """

    model_config = ConfigDict(json_schema_extra=_describe_kind)

    kind: str
    """Name of the component in a recipe."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        missing = sorted(name for name in cls.__class_vars__ if not hasattr(cls, name))
        if missing and isinstance(cls.model_fields["kind"].default, str):
            raise TypeError(f"{cls.__name__} lacks the class attribute {', '.join(missing)}")


C = TypeVar("C", bound=Component)


def discover(package: ModuleType, base: type[C]) -> dict[str, type[C]]:
    """Import every module of `package` and return the concrete subclasses of `base` defined there, sorted by kind."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    components: dict[str, type[C]] = {}
    pending: list[type[C]] = [base]
    while pending:
        component = pending.pop()
        pending += component.__subclasses__()
        kind = component.model_fields["kind"].default
        if isinstance(kind, str) and component.__module__.startswith(f"{package.__name__}."):
            components[kind] = component
    return dict(sorted(components.items()))


def tagged_union(components: Mapping[str, type[Component]], *, default: str | None = None, key: str = "kind") -> Any:
    """Type of a recipe field that accepts any of `components`: a mapping with a `kind`, or a bare word for its `key`.

    A mapping without a kind selects the only component that has all of its keys, or for unknown keys the only one that
    has most of them, or else the `default` one, if given.
    """

    def expand(value: object) -> object:
        if isinstance(value, str):
            value = {key: value}
        if isinstance(value, dict) and "kind" not in value and default is not None:
            shared = {kind: len(value.keys() & part.model_fields.keys()) for kind, part in components.items()}
            candidates = [kind for kind in components if shared[kind] == max(shared.values())]
            value = {"kind": candidates[0] if len(candidates) == 1 else default, **value}
        return value

    union: Any = Union[tuple(components.values())]  # noqa: UP007 (built at run time)
    tagged: Any = Annotated[union, Field(discriminator="kind")] if len(components) > 1 else union
    return Annotated[tagged, BeforeValidator(expand, json_schema_input_type=tagged | str)]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One entry of a .bib file."""

    key: str
    """Citation key, e.g. "hu2021lora"."""
    author: str
    """Authors in BibTeX notation: "Hu, Edward J. and others"."""
    title: str
    year: int
    arxiv: str
    """arXiv identifier."""

    def entry(self) -> str:
        """BibTeX entry; the capitals of the title are preserved.

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
