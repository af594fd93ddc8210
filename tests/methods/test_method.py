"""The interface of a method: what is obligatory, what has a default, and what an incomplete one is refused with."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar, Literal

import pytest

from peftlab.methods import METHODS, Method
from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.peft_method import PeftMethod
from tests.sampling import slow_after


class Complete(Method):
    """A method with nothing but the obligatory parts."""

    kind: Literal["complete"] = "complete"
    title: ClassVar[str] = "complete"
    learning_rate: ClassVar[float] = 1e-3

    def apply(self, model: Any, plan: Any) -> Any: ...
    def save(self, model: Any, folder: Any) -> None: ...
    def load(self, base: Any, folder: Any, *, trainable: bool = False) -> Any: ...


class Biases(DirectMethod):
    """A direct method with nothing but the obligatory parts."""

    kind: Literal["biases"] = "biases"
    title: ClassVar[str] = "biases"
    learning_rate: ClassVar[float] = 1e-3

    def trains(self, name: str, model: Any) -> bool:
        return name.endswith("bias")


def test_the_obligatory_parts_are_enough() -> None:
    method = Complete()
    assert not method.trains_base
    assert method.starts_as_base
    assert method.incompatible_with(None) is None  # type: ignore[arg-type]
    assert not method.merges


@pytest.mark.parametrize("part", ["apply", "save", "load"])
def test_a_method_without_an_obligatory_function_fails_with_its_name(part: str) -> None:
    namespace = {name: getattr(Complete, name) for name in ("apply", "save", "load", "title", "learning_rate")}
    del namespace[part]
    incomplete = type("Incomplete", (Method,), {**namespace, "__module__": __name__})
    with pytest.raises(TypeError, match=rf"Incomplete .*{part}"):
        incomplete(kind="incomplete")


@pytest.mark.parametrize("part", ["title", "learning_rate"])
def test_a_method_without_an_obligatory_attribute_fails_with_its_name(part: str) -> None:
    namespace = {name: getattr(Complete, name) for name in ("apply", "save", "load", "title", "learning_rate")}
    del namespace[part]
    kind = {"__annotations__": {"kind": Literal["incomplete"]}, "kind": "incomplete"}
    with pytest.raises(TypeError, match=f"Incomplete lacks the class attribute {part}"):
        type("Incomplete", (Method,), {**namespace, **kind, "__module__": __name__})


@pytest.mark.parametrize(("base", "part"), [(PeftMethod, "config"), (DirectMethod, "trains")])
def test_the_base_classes_name_their_own_obligatory_function(base: type[Method], part: str) -> None:
    namespace = {"title": "x", "learning_rate": 1e-3, "__module__": __name__}
    with pytest.raises(TypeError, match=part):
        type("Incomplete", (base,), namespace)(kind="incomplete")


def test_a_direct_method_trains_the_base_by_default() -> None:
    assert Biases().trains_base
    assert [kind for kind, method in METHODS.items() if issubclass(method, DirectMethod) and kind != "head"] == [
        "bitfit", "full"
    ]  # fmt: skip
    assert not METHODS["head"]().trains_base


@pytest.mark.parametrize("kind", slow_after(3, METHODS))
def test_the_settings_of_a_method_import_neither_torch_nor_peft(kind: str) -> None:
    module = METHODS[kind].__module__
    program = f"import sys, {module}; sys.exit(bool({{'torch', 'peft', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
