"""The rooms of the house: which way the arrows point, and that one thing is one file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from peftlab.component import Component, discover
from peftlab.data import DATA
from peftlab.methods import METHODS
from peftlab.quantization import QUANTIZATIONS
from peftlab.tasks import TASKS

PACKAGE = Path(__file__).parent.parent / "peftlab"


def test_no_file_outside_its_own_names_a_method_quantisation_or_task() -> None:
    """`if kind == "adalora"` anywhere else means that a hook is missing."""
    kinds = "|".join([*METHODS, *QUANTIZATIONS, *TASKS])
    branch = re.compile(rf"""(==|!=|\bin)\s*[\[({{]?\s*["']({kinds})["']""")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        # A quantisation is a setting that methods may refuse: unquantised or not is all they may ask.
        text = path.read_text().replace('quantization == "none"', "").replace('quantization != "none"', "")
        found += [f"{path.name}: {match.group(0)}" for match in branch.finditer(text)]
    assert found == []


def test_a_new_file_in_a_room_is_found_unasked(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "chair.py").write_text(
        "from typing import Literal\nfrom peftlab.component import Component\n\n"
        "class Chair(Component):\n    kind: Literal['chair'] = 'chair'\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import room as package  # type: ignore[import-not-found]

        assert list(discover(package, Component)) == ["chair"]
    finally:
        sys.path.remove(str(tmp_path))


def test_every_part_says_what_it_is() -> None:
    for parts in (METHODS, QUANTIZATIONS, TASKS, DATA):
        for kind, part in parts.items():
            assert part.__doc__, kind
            assert part.__doc__ != Component.__doc__, kind


def test_what_comes_after_the_run_needs_no_torch() -> None:
    modules = (
        "results.run_result",
        "statistics.hypothesis_tests",
        "statistics.power",
        "reports.markdown",
        "reports.latex",
        "reports.figures",
        "reports.html",
    )
    code = "import sys, " + ", ".join(f"peftlab.{module}" for module in modules)
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0


OF_PEFT = {"PeftModel", "LoraConfig"}  # which read safetensors and JSON, and take no such word


def test_whatever_transformers_reads_is_read_without_code_that_nobody_trusted() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "from_pretrained" or ast.unparse(node.func.value) in OF_PEFT:
                continue
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if words.get("trust_remote_code") not in ("False", "files.trusted"):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
