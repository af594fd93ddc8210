"""One run from training to merging, and its variants, on the simulated GPU: what the server's children do."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch

from peftlab.distributed import dispatch
from peftlab.errors import UserError
from peftlab.loading.head import with_head
from peftlab.methods import METHODS
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.tiny_model import small_config
from peftlab.recipe import Recipe
from peftlab.runs import inference
from peftlab.runs.launch import reset_accelerator_state
from peftlab.runs.run import RunOptions, run
from peftlab.tasks import TASKS
from peftlab.training import interruption, loop
from tests.gpu_rehearsal import census

BASES = {
    "bert": ("bert", "token_classification"),
    "llama": ("llama", "causal_lm"),
    "t5": ("t5", "seq2seq"),
    "bert-qa": ("bert", "question_answering"),
    "bert-text": ("bert", "sequence_classification"),
}
SHAPES = {"llama": {"num_key_value_heads": 8, "num_hidden_layers": 16, "tie_word_embeddings": True}}
TASK_SETTINGS: dict[str, dict[str, Any]] = {
    "causal_lm": {"form": "instruction", "generate": 2, "new_tokens": 4},
    "seq2seq": {"max_new_tokens": 4, "beams": 2},
}


def recipe(folder: Path, base: str, method: str, quantization: str, sample: int = 0, **training: Any) -> Recipe:
    """A recipe of four steps over a tiny base with random weights, written into `folder`."""
    architecture, kind = BASES[base]
    task = TASKS[kind].model_validate(TASK_SETTINGS.get(kind, {}))
    rows = task.sample_rows() * 3
    bound = task.from_training(rows).bind(rows)
    shape = {"model_type": architecture, **SHAPES.get(architecture, {})}
    config = small_config(shape, 64)
    config = type(config).from_dict({**config.to_dict(), **bound.model_settings()})
    data = folder / "rows.jsonl"
    if not data.exists():  # a resumed run finds the same files
        torch.manual_seed(0)
        with_head(config, bound).save_pretrained(folder / "base")
        byte_tokenizer(config).save_pretrained(folder / "base")
        data.write_text("\n".join(json.dumps(row.fields) for row in rows))
    settings = {"steps": 4, "evaluate_every": 2, "batch_examples": 4, "learning_rate": 1e-2, "precision": "bfloat16"}
    return Recipe.model_validate(
        {
            "name": base,
            "model": str(folder / "base"),
            "task": {"kind": kind, **TASK_SETTINGS.get(kind, {})},
            "data": {"train": str(data), "validation": str(data), "test": str(data)},
            "method": {"kind": method, **METHODS[method].test_settings[sample]},
            "quantization": quantization,
            "training": {**settings, **training},
        }
    )


def refused(recipe: Recipe) -> str | None:
    return recipe.incompatible_with(recipe.model.known_architecture())


def walk(folder: str, *, device: str = "cuda", device_map: Any = None, **settings: Any) -> dict[str, Any]:
    """Train, reload, predict and, if the method merges, merge; `settings` are those of `recipe`."""
    top = Path(folder)
    this = recipe(top, **settings)
    if (reason := refused(this)) is not None:
        return {"refused": reason}
    losses, devices = _observe()
    try:
        result = run(this, top / "run", RunOptions(device_map=device_map))
    except UserError as error:
        return {"refused": str(error)}
    assert result.environment.device == device, result.environment.device
    reset_accelerator_state()
    answers = list(inference.answers(top / "run", lambda task: this.rows().rows["test"][:3]))
    merged = None
    if this.method.merges and device_map is None:
        reset_accelerator_state()
        merged = inference.merge(top / "run", top / "merged")
    precision = result.environment.precision
    return {"losses": losses, "devices": devices, "precision": precision, "answers": len(answers), "merged": merged}


def host_waits(folder: str, **settings: Any) -> dict[str, int]:
    """Number of times that the third step waits for the GPU, by line."""
    waits = census.of_step(3)
    run(recipe(Path(folder), **settings, evaluate_every=4), Path(folder) / "run")
    return dict(waits)


def train(folder: str, *, resume: bool = False, **settings: Any) -> list[float]:
    """Losses of the steps that this process takes."""
    top = Path(folder)
    losses, _ = _observe()
    interruption.install()  # as the command line does
    run(recipe(top, **settings), top / "run", RunOptions(resume=resume))
    return losses


def plant_kill() -> None:
    """Send SIGTERM to the process at the start of the second step."""
    step = loop._Loop._step

    def killed(self: Any, batch: Any) -> None:
        if batch.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch)

    loop._Loop._step = killed  # type: ignore[method-assign]


def plant_eye_without_device() -> None:
    """Create the identity matrix of AdaLoRA's penalty on the CPU, whatever device is asked for."""
    eye = torch.eye

    @functools.wraps(eye)
    def on_cpu(*arguments: Any, **keywords: Any) -> Any:
        return eye(*arguments, **{name: value for name, value in keywords.items() if name != "device"})

    torch.eye = on_cpu


def plant_batch_on_cpu() -> None:
    """Leave the batch where it was collated."""
    from peftlab.training import gradients

    gradients.to_device = lambda batch, device: batch


def plant_item_in_step() -> None:
    """Read a value from the GPU in each step."""
    from peftlab.training.gradients import Gradients

    add = Gradients.add

    def reading(self: Gradients, *arguments: Any) -> Any:
        loss = add(self, *arguments)
        loss.item()
        return loss

    Gradients.add = reading  # type: ignore[method-assign]


def _observe() -> tuple[list[float], list[str]]:
    """Lists that receive the loss of each step and the devices of the model's parameters."""
    losses: list[float] = []
    devices: list[str] = []
    step = loop._Loop._step

    def observed(self: Any, batch: Any) -> None:
        step(self, batch)
        losses.append(self.state.log.steps[-1].loss)
        devices[:] = map(str, dispatch.devices(self.workload.model))

    loop._Loop._step = observed  # type: ignore[method-assign]
    return losses, devices
