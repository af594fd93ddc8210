"""The recipe: what to train, on what, how; YAML in, one clear line a mistake out."""

from __future__ import annotations

import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from peftlab.data import AnyData, Data
from peftlab.data.data import SPLITS
from peftlab.examples import Splits
from peftlab.expected import expected
from peftlab.methods import AnyMethod
from peftlab.methods.method import Setting
from peftlab.model import AnyModel
from peftlab.part import BadInput, Part, Settings, nearest, printable
from peftlab.quantization import AnyQuantization
from peftlab.quantization.none import NoQuantization
from peftlab.replay import Replay
from peftlab.settings import AnySeeds, Seeds, Training
from peftlab.tasks import AnyTask
from peftlab.yaml_reader import Document, Key, read_scalar, read_yaml

WRONG_FORM = ("model_type", "model_attributes_type", "dict_type", "list_type")  # pydantic's words
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class Recipe(Settings):
    """One run, every default filled in. Two recipes with the same digest are the same run."""

    name: str = Field(pattern=NAME)  # the file's own if not given
    description: str = ""
    model: AnyModel
    task: AnyTask
    data: AnyData
    replay: Replay | None = None  # old data to train on as well
    method: AnyMethod
    quantization: AnyQuantization = NoQuantization()
    training: Training = Training()
    seeds: AnySeeds = Seeds()
    score_test: bool = True  # off while settings are still being chosen

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the sha256 of all that shapes the result: not of what only describes it."""
        values = self.model_dump(
            mode="json",
            exclude={
                "name": True, "description": True, "model": {"architecture"}, "training": {"auto_micro_batch"}
            },
        )  # fmt: skip
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def learning_rate(self) -> float:
        """The recipe's, or else the method's own."""
        given = self.training.learning_rate
        return self.method.learning_rate if given is None else given

    def rows(self) -> Splits:
        """All rows, checked; the old ones that are replayed under "replay". Raises BadInput if some are bad."""

        def load(data: Data) -> Splits:
            task = self.task
            return data.load(
                task.fields,
                task.optional_fields,
                check=task.check,
                given=task.given_fields,
                scored=SPLITS if self.score_test else SPLITS[:2],
            )

        new = load(self.data)
        if self.replay is None:
            return new
        return self.replay.mixed(
            new, load(self.replay.data), self.task.given_fields or (*self.task.fields, *self.task.optional_fields)
        )

    def unsupported(
        self,
        architecture: str | None,
        *,
        sharded: bool = False,
        zero: int | None = None,
        spread: bool = False,
    ) -> str | None:
        """Why this combination cannot run, as far as can be told before anything loads."""
        if sharded and (storage := self.quantization.unshardable()) is not None:
            return storage
        reason = self.method.unsupported(
            Setting(
                architecture=architecture,
                quantization=self.quantization.kind,
                task_type=self.task.task_type,
                gradient_checkpointing=self.training.gradient_checkpointing,
                packed=self.task.packs,
                sharded=sharded,
                zero=zero,
                spread=spread,
            )
        )
        if reason is None and self.training.layer_decay is not None and self.method.positions:
            return "training.layer_decay: virtual tokens are in no layer; leave it out"
        return reason


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `key.subkey=value`. Raises BadInput, one line a mistake."""
    try:
        exists = path.exists()
    except OSError as error:  # e.g. a name of thousands of characters
        raise BadInput(f"{str(path)[:60]}: no such recipe: {error.strerror}") from None
    if not exists:
        raise BadInput(_no_such_file(path))
    document = read_yaml(path)
    values, lines = document.values, dict(document.lines)
    if "name" not in values and not re.fullmatch(NAME, path.stem):
        raise BadInput(f"{path}:1: name: missing, and the file's own, {path.stem!r}, does not match {NAME}")
    values.setdefault("name", path.stem)
    given = [_override(values, override) for override in overrides]
    try:
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise bad_input(error, Recipe, path, Document(values, lines), given) from None
    reason = recipe.unsupported(recipe.model.known_architecture())
    if reason is not None:
        raise BadInput(f"{path}:{lines.get(('method',), 1)}: method: {reason}")
    return recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema(mode="validation")
    schema["required"] = [key for key in schema["required"] if key != "name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "peftlab recipe"}


def bad_input(
    error: ValidationError, model: type[BaseModel], path: Path, document: Document, overridden: Sequence[Key] = ()
) -> BadInput:
    """What pydantic found wrong with a file that holds a `model`, one line a mistake: file, line, key, nearest word."""
    problems: dict[str, list[str]] = {}  # a key that may be this or that has a complaint from each
    keys = [_locate(d["loc"], document.values, missing=d["type"] == "missing")[0] for d in error.errors()]
    for key, details in zip(keys, error.errors(), strict=True):
        if any(len(other) > len(key) and other[: len(key)] == key for other in keys):
            continue  # it is one of the sorts that it may be, and what is wrong is inside
        place, complaint = _problem(path, model, document.values, document.lines, overridden, details)
        problems.setdefault(place, []).append(complaint)
    lines = (f"{place}: {', or '.join(dict.fromkeys(problems[place]))}" for place in problems)
    return BadInput("\n".join(printable(line) for line in lines))


def _no_such_file(path: Path) -> str:
    near = nearest(path.stem, (p.stem for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
    return f"{path}: no such recipe{near}"


def _override(values: dict[str, Any], override: str) -> Key:
    """Put `a.b=value` into `values`; return the key."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise BadInput(f"--set {printable(override)}: key=value was expected, e.g. method.rank=8")
    *parents, last = name.split(".")
    inner = values
    for parent in parents:
        below = inner.get(parent)
        if isinstance(below, str):  # the short form of a part, `method: lora`
            below = {"id" if parent in ("model", "data") else "kind": below}
        elif below is None:
            below = {}
        elif not isinstance(below, dict):
            raise BadInput(f"--set {printable(override)}: {parent!r} is {below!r}, which has no keys")
        inner[parent] = inner = below
    if last == "kind":
        inner.clear()  # another part: the keys of the one in the file are not its own
    try:
        inner[last] = read_scalar(text)
    except ValueError as error:
        raise BadInput(f"--set {printable(override)}: {error}") from None
    return (*parents, last)


def _problem(
    path: Path,
    model: type[BaseModel],
    values: dict[str, Any],
    lines: Mapping[Key, int],
    overridden: Sequence[Key],
    details: ErrorDetails,
) -> tuple[str, str]:
    """Where and which key; what was wanted, what was found, the nearest right word."""
    key, found = _locate(details["loc"], values, missing=details["type"] == "missing")
    kind, context = details["type"], details.get("ctx", {})
    if kind == "union_tag_invalid" and isinstance(found, dict):
        key = (*key, "kind")
    where = f"{path}:{_line(key, lines)}"
    for override in overridden:
        if key[: len(override)] == override or override[: len(key)] == key:
            where = f"--set {'.'.join(map(str, override))}"
    place = f"{where}: {'.'.join(map(str, key)) or model.__name__.lower()}"
    if kind == "extra_forbidden":
        known = _keys_beside(model, key, values)
        if key[-1] in known:  # of two sorts of the same part
            return place, "does not go with the other keys beside it; give one sort's keys or the other's"
        return place, f"unknown key{nearest(str(key[-1]), known)}; known are {', '.join(known)}"
    if kind == "missing":
        return place, "missing"
    if kind == "union_tag_not_found":
        return place, f"needs a 'kind', one of {', '.join(_kinds(_annotation(model, key)))}"
    if kind == "union_tag_invalid":
        known = list(_kinds(_annotation(model, key[:-1] if isinstance(found, dict) else key)))
        return place, f"unknown kind {context['tag']!r}{nearest(context['tag'], known)}; known are {', '.join(known)}"
    if kind == "value_error":
        return place, str(context["error"])
    if kind in WRONG_FORM and details["loc"][-1:] == key[-1:]:  # else it is one of several complaints
        return place, f"{expected(model, key)} was expected, found {_short(found)}"
    message = details["msg"]
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        message += nearest(str(found.get("kind") if isinstance(found, dict) else found), known)
    return place, f"{message[0].lower()}{message[1:]}, found {_short(found)}"


def _locate(location: Sequence[str | int], values: dict[str, Any], *, missing: bool) -> tuple[Key, Any]:
    """The key in the file that pydantic's location means: without the names of union members, which are no keys."""
    key: list[str | int] = []
    inner: Any = values
    for position, part in enumerate(location):
        if part in inner if isinstance(inner, dict) else isinstance(inner, list) and part in range(len(inner)):
            inner = inner[part]
        elif missing and position + 1 == len(location):
            pass  # a key that is missing
        else:
            continue
        key.append(part)
    return tuple(key), inner


def _line(key: Key, lines: Mapping[Key, int]) -> int:
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, 1)


def _keys_beside(model: type[BaseModel], key: Key, values: dict[str, Any]) -> list[str]:
    """The keys that would be right where `key` is wrong."""
    annotation: Any = model
    inner: Any = values
    for part in key[:-1]:
        inner = inner[part]
        annotation = _field(annotation, part)
        members = _kinds(annotation)
        if members:
            kind = inner.get("kind") if isinstance(inner, dict) else None
            annotation = members.get(str(kind)) or annotation
    models = list(_models(annotation)) or [model]
    return list(dict.fromkeys(name for found in models for name in found.model_fields))


def _annotation(annotation: Any, key: Key) -> Any:
    for part in key:
        annotation = _field(annotation, part)
    return annotation


def _field(annotation: Any, name: str | int) -> Any:
    """What the value of `name` in a model, or any value of a mapping or list, is annotated with."""
    for model in _models(annotation):
        if name in model.model_fields:
            return model.model_fields[str(name)].annotation
    return typing.get_args(annotation)[-1] if typing.get_origin(annotation) in (dict, list) else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that an annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _models(argument)


def _kinds(annotation: Any) -> dict[str, type[Part]]:
    return {str(model.model_fields["kind"].default): model for model in _models(annotation) if issubclass(model, Part)}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
