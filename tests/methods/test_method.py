"""The interface of methods: settings are read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peftlab.methods import METHODS
from tests.sampling import slow_after


@pytest.mark.parametrize("kind", slow_after(3, METHODS))
def test_a_methods_settings_import_neither_torch_nor_peft(kind: str) -> None:
    module = METHODS[kind].__module__
    program = f"import sys, {module}; sys.exit(bool({{'torch', 'peft', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
