"""The interface of a task: what a subclass must define."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

import pytest

from peftlab.tasks import TASKS, Task

OBLIGATORY = {
    *{"bind", "model_settings", "encode", "collate", "loss", "decode", "answer"},
    *{"metrics", "selection", "row_from_text", "sample_rows"},
}


class Incomplete(Task):
    auto_class: ClassVar[str] = "AutoModel"
    task_type: ClassVar[str] = "X"
    fields: ClassVar[tuple[str, ...]] = ()


def test_the_obligatory_methods_are_abstract() -> None:
    assert Task.__abstractmethods__ == OBLIGATORY


@pytest.mark.parametrize("name", sorted(OBLIGATORY))
def test_a_task_that_lacks_an_obligatory_method_cannot_be_instantiated(name: str) -> None:
    others: dict[str, Any] = dict.fromkeys(OBLIGATORY - {name}, lambda self: None)
    partial = type("Partial", (Incomplete,), others)
    for make in (lambda: partial(kind="partial"), lambda: partial.model_validate({"kind": "partial"})):
        with pytest.raises(TypeError, match=rf"Can't instantiate abstract class Partial .*'?{name}'?$"):
            make()


def test_a_task_that_lacks_a_class_attribute_is_refused_at_its_definition() -> None:
    with pytest.raises(TypeError, match="Nameless lacks the class attribute auto_class, fields, task_type"):

        class Nameless(Task):
            kind: Literal["nameless"] = "nameless"


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_is_concrete_and_has_a_one_line_description(kind: str) -> None:
    assert not inspect.isabstract(TASKS[kind])
    first_line = (TASKS[kind].__doc__ or "").splitlines()[0]
    assert first_line.endswith(".")
    assert len(first_line) < 100
