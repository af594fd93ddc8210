"""The walk: every text architecture of the installed transformers with the main methods, each in a limited process."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftlab.doctor import checks, limits
from peftlab.doctor.probe import LIBRARY_ERRORS, ProbeModel, make_probe_model, make_probe_run
from peftlab.doctor.reasons import refusal, upstream
from peftlab.errors import NotProbed, UserError
from peftlab.methods import METHODS
from peftlab.recipe import Recipe

TASKS = {  # the mapping of transformers that says which architectures have the head of a task; the first is tried
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "question_answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
METHODS_TRIED = ("lora", "adalora", "prefix_tuning", "adapter", "ia3", "bitfit", "full")
QUANTIZATIONS_TRIED = ("none", "nf4")
CELLS = tuple((method, quantization) for quantization in QUANTIZATIONS_TRIED for method in METHODS_TRIED)
WIDTH = 128  # twice what the methods' test settings are for: a narrower bottleneck may start with dead units only
MEMORY = 1536 << 20  # bytes above the import, for an architecture and for each of its cells
SECONDS = 30.0  # of a cell
MOST_TRAINED = (checks.check_gradients, checks.check_only_the_method, checks.check_after_evaluation)
CHECKS = (*MOST_TRAINED, checks.check_base_unchanged, checks.check_reload)


@dataclass(frozen=True)
class Outcome:
    """What became of one method and quantization on one architecture and task; without a method, of the task."""

    architecture: str
    task: str
    method: str
    quantization: str
    kind: str
    """works, refused or fails; `judged` adds upstream."""
    detail: str = ""
    """Why it is refused, or what failed."""
    seconds: float = 0.0
    peak: int = 0
    """MiB above what the process had in memory before the cell."""


def architectures() -> dict[str, list[str]]:
    """Every text architecture of transformers, with the tasks that it has a head for."""
    from transformers.models.auto import modeling_auto

    tasks: dict[str, list[str]] = {}
    for task, mapping in TASKS.items():
        for architecture in getattr(modeling_auto, mapping):
            tasks.setdefault(architecture, []).append(task)
    return dict(sorted(tasks.items()))


def walk(names: Iterable[str], cells: Sequence[tuple[str, str]] = CELLS) -> Iterator[tuple[str, list[Outcome]]]:
    """The outcomes of each architecture, each in a process of a fork server that imported everything once.

    The first task that the architecture can do is tried with all cells, the others with the first of them.
    """
    tasks = architectures()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "bitsandbytes", "peft", "accelerate"])
    for name in names:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(name, tasks[name], tuple(cells), writer))
        process.start()
        writer.close()
        outcomes: list[Outcome] = []
        try:
            while reader.poll(4 * SECONDS):
                outcomes.append(reader.recv())
            process.kill()
        except EOFError:
            pass
        process.join()
        if process.exitcode:
            lost = f"the process ended with {process.exitcode} after {len(outcomes)} outcomes"
            outcomes.append(Outcome(name, "", "", "", "fails", lost))
        yield name, outcomes


def _serve(architecture: str, tasks: Sequence[str], cells: Sequence[tuple[str, str]], writer: Any) -> None:
    """Try the cells of one architecture and send each outcome."""
    torch.set_num_threads(1)
    limits.limit_memory(MEMORY)
    left = cells
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                probe = _probe(architecture, task, Path(folder))
            except (NotProbed, *LIBRARY_ERRORS) as error:  # UserError is a ValueError
                writer.send(Outcome(architecture, task, "", "", *_of_error(error)))
                continue
            for method, quantization in left:
                cell = Outcome(architecture, task, method, quantization, "fails")
                ended = limits.run_in_fork(functools.partial(_try, probe, cell), seconds=SECONDS)
                value = ended.value or {"kind": "fails", "detail": ended.error}
                measured = dataclasses.replace(cell, seconds=round(ended.seconds, 1), peak=ended.peak >> 20)
                writer.send(dataclasses.replace(measured, **value))
        left = cells[:1]


def _probe(architecture: str, task: str, folder: Path) -> ProbeModel:
    values = {"model_type": architecture}
    return make_probe_model(_recipe(task, "lora", "none"), values, folder, device=torch.device("cpu"), width=WIDTH)


def _try(probe: ProbeModel, cell: Outcome) -> Mapping[str, str]:
    """Kind and detail of one cell, before a refusal is compared with the closed list."""
    recipe = _recipe(cell.task, cell.method, cell.quantization)
    try:
        reason = recipe.incompatible_with(cell.architecture)
        if reason is not None:
            return {"kind": "refused", "detail": reason}
        run = make_probe_run(dataclasses.replace(probe, recipe=recipe))
        results = [check(run) for check in CHECKS]
    except (NotProbed, *LIBRARY_ERRORS) as error:
        return dict(zip(("kind", "detail"), _of_error(error), strict=True))
    bad = [f"{check.name}: {check.detail}" for check in results if check.ok is False]
    return {"kind": "fails", "detail": "; ".join(bad)} if bad else {"kind": "works", "detail": ""}


def _of_error(error: Exception) -> tuple[str, str]:
    if isinstance(error, UserError):
        return "refused", str(error)
    return "fails", str(error) if isinstance(error, NotProbed) else checks.error_text(error)


def judged(outcome: Outcome) -> Outcome:
    """The outcome with its refusal looked up in the closed list, and its failure among the faults of the libraries."""
    if outcome.kind == "refused":
        name = refusal(outcome.detail)
        if name is None:
            return dataclasses.replace(outcome, kind="fails", detail=f"refused for no known reason: {outcome.detail}")
        return dataclasses.replace(outcome, detail=name)
    if outcome.kind == "fails":
        fault = upstream(outcome.architecture, outcome.task, outcome.detail)
        if fault is not None:
            return dataclasses.replace(outcome, kind="upstream", detail=fault)
    return outcome


def _recipe(task: str, method: str, quantization: str) -> Recipe:
    return Recipe.model_validate(
        {
            **{"name": "walk", "model": "none", "data": "none", "task": task, "quantization": quantization},
            **{"method": {"kind": method, **METHODS[method].test_settings[0]}, "training": {"precision": "float32"}},
        }
    )
