"""The shapes of well-known bases, kept for where their config.json cannot be had."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Config = Mapping[str, Any]  # of a config.json


@functools.cache
def shapes() -> Mapping[str, Config]:
    """By hub id, older ids too."""
    book = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    known: dict[str, Config] = {}
    for id, entry in book.items():
        aliases = entry.pop("aliases", [])
        known |= dict.fromkeys([id, *aliases], entry)
    return known


def disagreement(shape: Config, config: Config) -> str | None:
    """The first key in which a kept shape is not what config.json says. A key it leaves out is the library's default.

    >>> disagreement({"hidden_size": 768}, {"hidden_size": 384})
    'hidden_size is 384, not 768'
    """
    for key, kept in shape.items():
        if key in config and config[key] != kept:
            return f"{key} is {config[key]!r}, not {kept!r}"
    return None
