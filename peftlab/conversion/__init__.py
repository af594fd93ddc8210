"""Conversions: what a package carries in another format, once and for all written as a base in transformers' layout.

One file a conversion, named in the catalogue. It has `convert(source, target)`: read the members in the folder
`source`, write config.json, tokenizer and safetensors into the empty folder `target`. What it writes is cached under
its name: a conversion that shall write something else needs a new one.
"""

from __future__ import annotations

import importlib
from pathlib import Path


def convert(name: str, source: Path, target: Path) -> None:
    """Do the conversion of this name. Raises BadInput if a library that only it needs is not installed."""
    importlib.import_module(f"{__name__}.{name}").convert(source, target)
