"""FSDP2 over gloo: two processes with a shard of the model each train, checkpoint and save as one process does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peftlab.distributed.fsdp import FsdpSettings
from peftlab.errors import UserError
from peftlab.models.byte_tokenizer import byte_tokenizer
from tests.contract.bases import Combination, tiny
from tests.faults.conftest import COMBINATIONS, NIGHT, Lab, both, finished, steps
from tests.faults.sharding import COMPILER, NO_COMPILER, check_resuming, check_the_saved_model, recipe_of
from tests.sampling import sampled, slow_after

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SHARDABLE = [c for c in COMBINATIONS if c.precision != "int8" and c.kind != "adalora"]
SOME = [
    *("lora-none-encoder", "lora-nf4-encoder", "full-none-encoder", "prefix_tuning-none-encoder"),
    *("adapter-nf4-encoder", "bitfit-none-encoder"),
]
CHANGE = SHARDABLE if NIGHT else [c for c in SHARDABLE if str(c) in SOME]


@pytest.mark.parametrize("combination", sampled(CHANGE, lambda cell: (cell.precision,), strength=1), ids=str)
def test_shards_train_as_one_process(combination: Combination, lab: Lab, output: Path) -> None:
    recipe = recipe_of(combination)
    one = lab.uninterrupted(*recipe).result
    reports = [output.with_name(f"{output.name}-held-{rank}.json") for rank in (0, 1)]
    faults = {rank: [["write_held_bytes", str(path)]] for rank, path in enumerate(reports)}
    done = both(lab, lab.words(output, *recipe), faults, **FSDP)
    assert [d.code for d in done] == [0, 0], done
    assert "2 processes, sharded (FSDP2)" in done[0].out
    other = finished(output).result
    assert other.environment.sharded
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)
    assert other.metrics == one.metrics
    assert other.parameters == one.parameters
    for path in reports:
        local, total = json.loads(path.read_text())
        assert total / 2 <= local < total / 2 * 1.1  # shards have equal sizes, padded where necessary


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (
            "training.gradient_checkpointing=true",
            "training.accumulation=2",
            'quantization={"kind": "nf4", "storage": "bfloat16"}',
        ),
        ("training.adversarial=1.0", "training.embedding_noise=5", "training.layer_decay=0.8"),
        ('method={"kind": "lora", "initialization": "pissa"}', "training.keep_best=true"),
    ],
    ids=str,
)
def test_shards_train_with_every_option(options: tuple[str, ...], lab: Lab, output: Path) -> None:
    recipe = ("method.dropout=0.0", "training.dropout=0.0", *options)
    one = lab.uninterrupted(*recipe).result
    done = both(lab, lab.words(output, *recipe), **FSDP, FSDP_RESHARD_AFTER_FORWARD="false")
    assert [d.code for d in done] == [0, 0], done
    other = finished(output).result
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)
    assert other.metrics == one.metrics


@pytest.mark.slow
def test_the_saved_model_is_unsharded(lab: Lab, output: Path) -> None:
    check_the_saved_model(lab, output, **FSDP)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [c for c in CHANGE if c.kind in ("lora", "full")], ids=str)
def test_both_killed_they_resume_bit_identically(combination: Combination, lab: Lab, output: Path) -> None:
    check_resuming(combination, lab, output, **FSDP)


def test_a_sharded_checkpoint_is_refused_without_sharding(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "1", "--resume"]
    kill = [["kill_at_step", 3]]
    both(lab, words, {0: kill, 1: kill}, **FSDP)
    assert steps(output)
    done = both(lab, words)
    assert done[0].code == 2  # the other process may see the first one end
    assert "shards of the model: True there, False here" in done[0].err


def test_a_signal_to_one_process_ends_both_with_one_checkpoint(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "never"]
    done = both(lab, words, {1: [["signal_at_step", 4, 15]]}, **FSDP)
    assert [d.code for d in done] == [143, 143], done
    assert [path.name for path in steps(output)] == ["step-00000004"]


TEXTS = {
    "causal_lm": (
        "llama",
        "AutoModelForCausalLM",
        {"instruction": "say {}", "output": "{} {}"},
        "generate: 3, new_tokens: 6",
    ),
    "seq2seq": ("t5", "AutoModelForSeq2SeqLM", {"source": "say {}", "target": "{} {}"}, "max_new_tokens: 6, beams: 2"),
}
WRITING = """\
model: {name}
task: {{kind: {task}, {setting}}}
data: {{train: {task}.jsonl, validation: {task}.jsonl, test: {task}.jsonl}}
method: {{kind: {method}}}
training: {{steps: 2, batch_examples: 4, learning_rate: 1e-3, precision: float32}}
"""


ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


PLACES = {"fsdp2": FSDP, "zero-3": ZERO_3}


@pytest.mark.parametrize(
    ("place", "task", "method"),
    slow_after(1, [(p, t, m) for p in PLACES for t in TEXTS for m in ("lora", "full")]),
)
def test_sharded_models_generate_what_one_process_generates(
    place: str, task: str, method: str, lab: Lab, output: Path
) -> None:
    if place == "zero-3" and not COMPILER:
        pytest.skip(NO_COMPILER)
    architecture, auto, fields, setting = TEXTS[task]
    name = f"writing-{architecture}"
    if not (lab.folder / name).exists():
        sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        model = tiny(architecture, auto, vocab_size=512, **(sizes if task == "seq2seq" else {}))
        model.save_pretrained(lab.folder / name)
        byte_tokenizer(model.config).save_pretrained(lab.folder / name)
        rows = [{key: text.format(n, n * n) for key, text in fields.items()} for n in range(9)]
        (lab.folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = lab.folder / f"{name}-{method}.yaml"
    recipe.write_text(WRITING.format(name=name, task=task, setting=setting, method=method))
    folders = [output / "one", output / "two"]
    assert lab.server.run("run", recipe, "--output", folders[0]).code == 0
    done = both(lab, ["run", recipe, "--output", folders[1]], **PLACES[place])
    assert [d.code for d in done] == [0, 0], done
    one, other = ([json.loads(line) for line in next(f.rglob("predictions.jsonl")).open()] for f in folders)
    assert [record["predicted"] for record in other] == [record["predicted"] for record in one]
    assert len(one) == 18


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("combination", [c for c in CHANGE if c.kind in ("lora", "full")], ids=str)
def test_two_gpus_train_sharded_as_data_parallel(combination: Combination, lab: Lab, output: Path) -> None:
    recipe = recipe_of(combination)
    losses = []
    for place in ({}, FSDP):
        folder = output / f"{len(losses)}"
        done = both(lab, lab.words(folder, *recipe), ACCELERATE_USE_CPU="false", **place)
        assert [d.code for d in done] == [0, 0], done
        assert "cuda, 2 processes" in done[0].out
        losses.append(finished(folder).result.curve.losses)
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("sets", "environment", "says"),
    [
        (["quantization=int8"], {}, "FSDP: int8 weights cannot be sharded"),
        (["quantization=nf4"], {}, "set quantization.storage: bfloat16"),
        (["method=adalora"], {}, "FSDP: AdaLoRA compares the singular values"),
        ([], {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ([], {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        ([], {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "training.gradient_checkpointing: true"),
        ([], {"WORLD_SIZE": "1"}, "one process cannot shard a model"),
    ],
    ids=str,
)
def test_what_cannot_be_sharded_is_refused_before_loading(
    sets: list[str], environment: dict[str, str], says: str, lab: Lab, output: Path
) -> None:
    done = lab.server.run(*lab.words(output, *sets), **{**FSDP, "WORLD_SIZE": "2", **environment})
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert len(done.err.splitlines()) == 1


def test_the_launcher_s_setting_is_read_and_removed_from_the_environment() -> None:
    environment = {**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}
    assert FsdpSettings.from_env(environment) == FsdpSettings(reshard=False)
    assert FsdpSettings.from_env(environment) is None  # otherwise Accelerate would shard, too
    with pytest.raises(UserError, match="fsdp_version: 2"):
        FsdpSettings.from_env({"ACCELERATE_USE_FSDP": "1"})
