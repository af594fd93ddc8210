"""Rules of the source tree that no linter knows: one component is one file, and reports need no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from peftlab.component import Component, discover
from peftlab.data import DATA
from peftlab.methods import METHODS
from peftlab.optimizers import OPTIMIZERS
from peftlab.quantization import QUANTIZATIONS
from peftlab.tasks import TASKS

PACKAGE = Path(__file__).parent.parent / "peftlab"


def test_no_module_branches_on_the_kind_of_a_component() -> None:
    """`if kind == "adalora"` means that the interface of methods lacks a hook."""
    kinds = "|".join([*METHODS, *QUANTIZATIONS, *TASKS, *OPTIMIZERS])
    branch = re.compile(rf"""(==|!=|\bin)\s*[\[({{]?\s*["']({kinds})["']""")
    violations = []
    for path in sorted(PACKAGE.rglob("*.py")):
        # Methods may ask whether the base is quantized, not how.
        text = path.read_text().replace('quantization == "none"', "").replace('quantization != "none"', "")
        violations += [f"{path.name}: {match.group(0)}" for match in branch.finditer(text)]
    assert violations == []


def test_a_new_file_in_a_package_is_discovered(tmp_path: Path) -> None:
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


def test_every_component_has_a_docstring() -> None:
    for parts in (METHODS, QUANTIZATIONS, TASKS, DATA, OPTIMIZERS):
        for kind, part in parts.items():
            assert part.__doc__, kind
            assert part.__doc__ != Component.__doc__, kind


def test_records_statistics_and_reports_import_no_torch() -> None:
    modules = (
        "results.run_result",
        "statistics.hypothesis_tests",
        "statistics.power",
        "reports.files",
        "reports.html",
        "reports.overview",
    )
    code = "import sys, " + ", ".join(f"peftlab.{module}" for module in modules)
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0


OF_PEFT = {"PeftModel", "LoraConfig"}  # read safetensors and JSON only, and have no trust_remote_code


def test_every_from_pretrained_of_transformers_sets_trust_remote_code() -> None:
    violations = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "from_pretrained" or ast.unparse(node.func.value) in OF_PEFT:
                continue
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if arguments.get("trust_remote_code") not in ("False", "files.trusted"):
                violations.append(f"{path.name}:{node.lineno}")
    assert violations == []
