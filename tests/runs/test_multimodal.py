"""Checkpoints with vision towers are tuned on text alone, and nothing else in them changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from peftlab.errors import UserError
from peftlab.loading import head
from peftlab.methods import TrainingPlan
from peftlab.methods.lora import Lora
from peftlab.models.model import KnownConfig
from peftlab.models.text_branch import is_part_of, outside
from peftlab.models.tiny_model import small_config
from peftlab.profiling.estimate import estimate
from peftlab.recipe import Recipe
from peftlab.results.run_result import RunResult
from peftlab.runs import artifact
from peftlab.runs.inference import answers, merge
from peftlab.runs.run import run
from peftlab.tasks import TASKS
from peftlab.tasks.causal_lm import CausalLM
from tests.models import multimodal
from tests.sampling import slow_after

LORA = {"kind": "lora", "rank": 4}
TOWERS = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "connector")
INPUTS = {"input_ids": torch.arange(24).view(2, 12) + 256, "attention_mask": torch.ones(2, 12, dtype=torch.int64)}


def recipe_of(folder: Path, base: Path, method: Any, quantization: str = "none", **more: dict[str, Any]) -> Recipe:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"say {n}", "output": f"{n * n}"}) + "\n" for n in range(6)))
    return Recipe.model_validate(
        {
            **{"name": "text", "model": str(base), "method": method, "quantization": quantization},
            "task": {"kind": "causal_lm", "form": "instruction", "new_tokens": 3, **more.get("task", {})},
            "data": dict.fromkeys(("train", "validation", "test"), str(rows)),
            "training": {"steps": 3, "batch_examples": 3, "learning_rate": 1e-2, **more.get("training", {})},
        }
    )


def tune(folder: Path, architecture: str, *settings: Any, **more: dict[str, Any]) -> tuple[RunResult, Path, Path]:
    """The result, the base's folder and the run's."""
    base = multimodal.write(architecture, folder / "base")
    return run(recipe_of(folder, base, *settings, **more), folder / "run"), base, folder / "run"


def logits(model: Any, tuned: artifact.Tuned) -> torch.Tensor:
    with torch.no_grad(), tuned.autocast():
        return model(**INPUTS).logits  # type: ignore[no-any-return]


def through_peft_alone(base: Path, folder: Path, tuned: artifact.Tuned) -> peft.PeftModel:
    """The tuned model as transformers and PEFT load it without peftlab."""
    dtype = getattr(torch, tuned.card.precision)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    return peft.PeftModel.from_pretrained(plain, folder / "adapter").eval()


def check_merged(output: Path, base: Path) -> None:
    """The merged checkpoint has the base's tensors; only those of the text branch differ, and all of it loads."""
    merged, published = load_file(output / "model.safetensors"), load_file(base / "model.safetensors")
    assert merged.keys() == published.keys()
    equal = {
        name
        for name, tensor in merged.items()
        if torch.equal(tensor.view(torch.int16), published[name].view(torch.int16))
    }
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    towers = {name for name in merged if any(f".{tower}." in f".{name}" for tower in TOWERS)}
    assert towers
    assert towers <= equal < merged.keys()
    _, report = transformers.AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (output / "processor_config.json").read_bytes() == (base / "processor_config.json").read_bytes()


@pytest.mark.parametrize(
    ("architecture", "quantization"),
    slow_after(1, [("mistral3", "none"), *((name, kind) for name in multimodal.CONFIGS for kind in ("nf4", "none"))]),
)
def test_lora_adapts_the_text_branch_and_leaves_the_towers_as_they_are(
    architecture: str, quantization: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, base, folder = tune(tmp_path, architecture, LORA, quantization)
    assert result.parameters.outside_text
    assert "text only" in capsys.readouterr().out
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert not [name for name in adapter if any(f".{tower}." in name for tower in TOWERS)]
    tuned = artifact.load(folder, device=torch.device("cpu"))
    parts = outside(tuned.base.model)
    stored = {p.dtype for name, p in tuned.base.model.named_parameters() if is_part_of(name, parts)}
    assert stored == {torch.bfloat16 if tuned.card.precision == "bfloat16" else torch.float32}  # not packed
    assert next(answers(folder, lambda task: [task.row_from_text("hello", "rows:1")]))["answer"] is not None
    if quantization == "none":
        plain = transformers.AutoModelForImageTextToText.from_pretrained(
            base, dtype=getattr(torch, tuned.card.precision)
        )
        wrapped = peft.PeftModel.from_pretrained(plain, folder / "adapter").eval()
        assert torch.equal(logits(wrapped, tuned).float(), logits(tuned.model, tuned).float())
    merge(folder, tmp_path / "merged")
    check_merged(tmp_path / "merged", base)


@pytest.mark.slow
def test_rows_are_packed_for_a_text_branch_that_separates_them(tmp_path: Path) -> None:
    """transformers separates them only without a cache, which the text branch's own config must switch off."""
    result, *_ = tune(tmp_path, "llava", LORA, task={"packing": True})
    assert result.cost.padding_fraction < 0.1


@pytest.mark.slow
def test_memory_is_estimated_of_a_base_that_copies_its_input_before_looking_it_up(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, multimodal.write("gemma3", tmp_path / "base"), LORA, training={"embedding_noise": 5.0})
    assert next(estimate(recipe)).memory is not None


@pytest.mark.slow
def test_an_adapter_whose_tensors_peft_does_not_find_again_is_refused(tmp_path: Path) -> None:
    """transformers renames the layers of checkpoints of Unlimited OCR; PEFT does so with names that are new already."""
    config = small_config({"model_type": "unlimited_ocr"}, 64)

    def base() -> transformers.PreTrainedModel:
        return transformers.AutoModelForImageTextToText.from_config(config)  # type: ignore[no-any-return]

    method = Lora(targets=["q_proj"])
    method.save(method.apply(base(), TrainingPlan(optimizer_steps=1, task_type="CAUSAL_LM")), tmp_path)
    with pytest.raises(UserError, match=r"does not find all tensors .* a unlimited_ocr: .*q_proj"):
        method.load(base(), tmp_path)


@pytest.mark.parametrize("architecture", ["blip", "kosmos-2"])
def test_a_base_that_cannot_do_without_an_image_is_refused(architecture: str) -> None:
    known = KnownConfig({"model_type": architecture}, "a config")
    with pytest.raises(UserError, match=rf"task: {architecture} cannot be run on text alone: .*pixel_values"):
        head.check(known, CausalLM())


@pytest.mark.parametrize("kind", ["token_classification", "question_answering"])
def test_a_task_without_a_model_of_the_architecture_is_refused(kind: str) -> None:
    task = TASKS[kind]()
    task = task.bind(task.sample_rows())
    known = KnownConfig({"model_type": "mistral3"}, "a config")
    with pytest.raises(UserError, match=rf"a mistral3 cannot serve {kind}: transformers has no AutoModelFor\w+ of it"):
        head.check(known, task)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma3", "qwen3_vl"])
def test_full_fine_tuning_trains_the_text_branch_alone(architecture: str, tmp_path: Path) -> None:
    result, base, folder = tune(tmp_path, architecture, "full")
    parameters = result.parameters
    assert parameters.trainable == parameters.base - (parameters.outside_text or 0)
    assert (folder / "model" / "processor_config.json").exists()
    merge(folder, tmp_path / "merged")
    check_merged(tmp_path / "merged", base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("gemma3", "prefix_tuning"), ("gemma3", "prompt_tuning"), ("qwen3_vl", "prefix_tuning")],
)
def test_virtual_tokens_reload_to_the_same_logits(architecture: str, kind: str, tmp_path: Path) -> None:
    """After evaluations that generate, of which the Qwen-VL models keep positions."""
    method = {"kind": kind, "length": 4}
    _, base, folder = tune(tmp_path, architecture, method, task={"generate": 1}, training={"evaluate_every": 1})
    tuned = artifact.load(folder, device=torch.device("cpu"))
    wrapped = through_peft_alone(base, folder, tuned)
    expected = logits(tuned.model, tuned)
    assert torch.equal(logits(wrapped, tuned)[:, -expected.shape[1] :].float(), expected.float())
