"""Suites that run in seconds: MiniLM on a few sentences of US addresses."""

from pathlib import Path
from typing import Any

import yaml

LORA = {"method": {"kind": "lora", "rank": 2}, "learning_rate": 1e-2}
HEAD = {"method": "head", "learning_rate": 1e-2, "quantizations": ["none"]}
FULL = {"method": "full", "learning_rate": 1e-3}

TINY: dict[str, Any] = {
    "seeds": [1],
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "task": "token_classification",
    "data": {
        "id": "datamade/usaddress",
        "columns": {"labels": "ner_tags"},
        "train_examples": 12,
        "validation_examples": 6,
        "test_examples": 20,
    },
    "training": {"steps": 2, "batch_tokens": 128, "precision": "float32"},
    "trials": {"points": 1},
    "reference": "lora",
    "quantizations": ["none"],
    "tasks": {"addresses": {}},
    "methods": {"lora": LORA, "head": HEAD},
}

GRID: dict[str, Any] = {
    "seeds": [1, 2],
    "trials": {"points": 2, "extensions": 0},
    "quantizations": ["none", "nf4"],
    "methods": {"full": {**FULL, "quantizations": ["nf4"]}, "lora": LORA, "head": HEAD},
}
"""Keys of a suite with trials, several seeds, and a row that validation refuses: full over NF4."""

COMPARISON: dict[str, Any] = {
    "seeds": [1, 2],
    "trials": {},
    "reference": "full",
    "quantizations": ["none", "nf4"],
    "methods": {
        "full": {"method": "full", "learning_rate": 1e-4},
        "lora": {"method": {"kind": "lora", "rank": 8}, "learning_rate": 1e-3},
    },
}
"""Keys of a suite that is planned, not run: two methods over two quantizations, with the default trials."""


def write_suite(folder: Path, **keys: Any) -> Path:
    """Write suite.yaml into `folder`: TINY with these keys replaced, `data` and `training` key by key."""
    values = {**TINY, **keys}
    for key in ("data", "training"):
        values[key] = {**TINY[key], **keys.get(key, {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder
