"""Stored configs of well-known base models, for use when their config.json is not available."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Config = Mapping[str, Any]
"""Content of a config.json."""


@functools.cache
def stored_configs() -> Mapping[str, Config]:
    """Stored configs by Hub id, aliases included."""
    entries = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    configs: dict[str, Config] = {}
    for id, entry in entries.items():
        aliases = entry.pop("aliases", [])
        configs |= dict.fromkeys([id, *aliases], entry)
    return configs


def disagreement(stored: Config, config: Config) -> str | None:
    """First key whose stored value differs from config.json, or None. Keys missing in config.json are not compared.

    >>> disagreement({"hidden_size": 768}, {"hidden_size": 384})
    'hidden_size is 384, not 768'
    """
    for key, value in stored.items():
        if key in config and config[key] != value:
            return f"{key} is {config[key]!r}, not {value!r}"
    return None
