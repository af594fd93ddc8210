"""The compatibility table: outcomes of the walk over all architectures, stored as JSON and written as Markdown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import peftlab
from peftlab.doctor.walk import METHODS_TRIED, QUANTIZATIONS_TRIED, Outcome, architectures, judged, walk
from peftlab.io.markdown_table import markdown_table
from peftlab.results.environment import environment
from peftlab.sources.assets import cache_folder

FILE = Path("docs/compatibility.md")
SIGNS = {"works": "+", "refused": "-", "upstream": "u", "fails": "**F**"}
INTRODUCTION = """\
Each of {count} architectures with a text task in transformers was built tiny from its default config: few layers,
at most 5 M parameters, random weights. Each method was attached, trained, evaluated, trained on, saved and loaded, once
with the base in float32 and once in NF4, which is the second sign of a cell.

- `+` works: every trainable tensor gets a gradient before and after evaluation and moves, the frozen base stays
  bit-identical, and the reloaded model gives the same logits.
- `-` refused, with a reason of a closed list: see below.
- `u` a fault of the library: the default config does not build, or does not run without any method.
- `F` fails although nothing refuses it: a bug."""


def store_file() -> Path:
    """Where the outcomes are kept that this code gave, so that a walk that was stopped resumes."""
    digest = hashlib.sha256(repr(sorted(_libraries().items())).encode())
    for path in sorted(Path(peftlab.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return cache_folder() / "walk" / f"{digest.hexdigest()[:16]}.jsonl"


def try_all(*, store: Path, shard: tuple[int, int] = (1, 1), say: Callable[[str], object] = print) -> list[Outcome]:
    """Outcomes of all architectures: those stored, and the others of this shard, which are tried and stored."""
    names = list(architectures())
    outcomes = read(store)
    done = {outcome.architecture for outcome in outcomes}
    number, shards = shard
    store.parent.mkdir(parents=True, exist_ok=True)
    for name, found in walk(name for name in names[number - 1 :: shards] if name not in done):
        with store.open("a", encoding="utf-8") as stream:  # at once, so that shards may write to one file
            stream.write("".join(json.dumps(asdict(outcome)) + "\n" for outcome in found))
        outcomes += found
        counts = {kind: sum(judged(outcome).kind == kind for outcome in found) for kind in SIGNS}
        say(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    return outcomes


def read(store: Path) -> list[Outcome]:
    """The stored outcomes, none if there is no file."""
    if not store.exists():
        return []
    return [Outcome(**json.loads(line)) for line in store.read_text(encoding="utf-8").splitlines()]


def document(outcomes: Iterable[Outcome]) -> str:
    """Markdown: one line per architecture, then the reasons with the architectures that they concern."""
    found = [judged(outcome) for outcome in outcomes]
    by_name: dict[str, list[Outcome]] = {}
    for outcome in found:
        by_name.setdefault(outcome.architecture, []).append(outcome)
    rows = [_row(name, by_name[name]) for name in sorted(by_name)]
    versions = ", ".join(f"{name} {version}" for name, version in _libraries().items())
    tried = len(by_name)
    missing = len(architectures()) - tried
    lines = [
        "# What trains with what",
        "",
        f"Written by `peftlab doctor --matrix` with {versions}, on a CPU in float32. Do not edit.",
        "",
        INTRODUCTION.format(count=tried),
        "",
        *([f"{missing} architectures have not been tried yet.", ""] if missing else []),
        _counts([outcome for outcome in found if outcome.method]),
        "",
        markdown_table(["architecture", "task", *METHODS_TRIED, "other tasks"], rows),
        "",
        *_details(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _libraries() -> Mapping[str, str]:
    installed = environment("cpu", "float32", 1).libraries
    return {name: installed[name] for name in ("torch", "transformers", "peft", "bitsandbytes") if name in installed}


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """The line of one architecture: the task that all methods were tried on, and the others."""
    cells = {(outcome.task, outcome.method, outcome.quantization): outcome for outcome in outcomes}
    main = next((outcome.task for outcome in outcomes if outcome.method not in ("", METHODS_TRIED[0])), "")
    signs = [
        " ".join(
            SIGNS[cells[main, method, quantization].kind]
            for quantization in QUANTIZATIONS_TRIED
            if (main, method, quantization) in cells
        )
        for method in METHODS_TRIED
    ]
    others = [f"{outcome.task} {SIGNS[outcome.kind]}" for outcome in outcomes if outcome.task and outcome.task != main]
    return [name, main, *signs, ", ".join(others)]


def _counts(outcomes: Sequence[Outcome]) -> str:
    """How many cells have each outcome."""
    counts = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in SIGNS}
    return f"Of {len(outcomes)} cells: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "."


def _details(outcomes: Sequence[Outcome]) -> list[str]:
    """Every reason, folded, with what it concerns."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for outcome in outcomes:
        if outcome.kind != "works":
            what = outcome.architecture if outcome.kind != "fails" else f"{outcome.architecture} {outcome.method}"
            reasons.setdefault((outcome.kind, _one_line(outcome.detail)), {})[what] = None
    lines = []
    for kind in ("refused", "upstream", "fails"):
        of_kind = {detail: names for (of, detail), names in reasons.items() if of == kind}
        if of_kind:
            lines += [f"<details><summary>{kind}: {len(of_kind)} reasons</summary>", ""]
            lines += [f"- {detail}: {', '.join(names)}" for detail, names in sorted(of_kind.items())]
            lines += ["", "</details>", ""]
    return lines


def _one_line(detail: str) -> str:
    return " ".join(detail.split())[-200:].replace("|", "\\|")
